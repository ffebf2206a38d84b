/* fail.hpp - how the example reports what went wrong, and its random numbers. */
#ifndef MEGATRON_FAIL_HPP
#define MEGATRON_FAIL_HPP

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <hra/hra.h>
#include <stdexcept>
#include <string>

/* What the user gave wrong. Every rank finds it alike and at the same place, so all leave together. */
struct wrong : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/* What failed on this rank: say so and end the whole job. It is no exception, since other ranks may wait
 * for this one in a call, and what an exception would destroy on its way can only be destroyed together
 * with them. */
[[noreturn]] void fail(const std::string &why);

/* One sentence with its values, as printf. */
__attribute__((format(printf, 1, 2))) inline std::string sentence(const char *format, ...)
{
    char text[1024];
    va_list values;

    va_start(values, format);
    vsnprintf(text, sizeof(text), format, values);
    va_end(values);
    return text;
}

/* libhra's own sentence where it has failed. */
inline void try_hra(hra_status status)
{
    if (status != HRA_OK)
        fail(sentence("%s: %s", hra_status_name(status), hra_last_error()));
}

/* The random number of (seed, stream, index): a hash, so that every rank draws the same ones whatever it
 * holds. The finaliser is that of SplitMix64 (Steele, Lea, Flood 2014). */
inline uint64_t random_bits(int64_t seed, uint64_t stream, uint64_t index)
{
    uint64_t x = static_cast<uint64_t>(seed);

    for (uint64_t word : {stream, index}) {
        x += 0x9E3779B97F4A7C15u * (word + 1);
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        x ^= x >> 31;
    }
    return x;
}

/* The same, uniform in [0, 1). */
inline double random_uniform(int64_t seed, uint64_t stream, uint64_t index)
{
    return static_cast<double>(random_bits(seed, stream, index) >> 11) * 0x1p-53;
}

#endif
