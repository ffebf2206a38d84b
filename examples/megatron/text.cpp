/* text.cpp - see text.hpp. */
#include "text.hpp"
#include "fail.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

/* What is wrong with the file; "" for nothing. */
static std::string read_file(std::vector<uint8_t> &bytes, const std::string &path, int64_t tokens)
{
    FILE *f = std::fopen(path.c_str(), "rb");
    uint8_t piece[1 << 16];
    size_t got;

    if (f == nullptr)
        return sentence("cannot read the text %s: %s", path.c_str(), std::strerror(errno));
    while ((got = std::fread(piece, 1, sizeof(piece), f)) > 0)
        bytes.insert(bytes.end(), piece, piece + got);
    const int error = std::ferror(f) ? errno : 0;
    std::fclose(f);
    if (error != 0)
        return sentence("cannot read the text %s: %s", path.c_str(), std::strerror(error));
    if (static_cast<int64_t>(bytes.size()) <= tokens)
        return sentence("%s has %zu bytes: too few for a sequence of %lld and the byte after it",
                        path.c_str(), bytes.size(), static_cast<long long>(tokens));
    return "";
}

text::text(const options &o, MPI_Comm world)
{
    char why[1024] = "";
    int rank;

    MPI_Comm_rank(world, &rank);
    if (rank == 0)
        std::snprintf(why, sizeof(why), "%s", read_file(bytes, o.text, o.tokens).c_str());
    MPI_Bcast(why, sizeof(why), MPI_CHAR, 0, world);
    if (why[0] != '\0')
        throw wrong(why);

    int64_t all = count();
    MPI_Bcast(&all, 1, MPI_INT64_T, 0, world);
    bytes.resize(static_cast<size_t>(all));
    for (int64_t at = 0; at < all; at += 1 << 30) /* MPI counts in int */
        MPI_Bcast(bytes.data() + at, static_cast<int>(std::min<int64_t>(all - at, 1 << 30)), MPI_BYTE, 0,
                  world);
}

const uint8_t *text::at(const options &o, int64_t step, int64_t sequence) const
{
    constexpr uint64_t STREAM = UINT64_MAX - 1; /* the weights count theirs from 0 */
    const uint64_t drawn = random_bits(o.seed, STREAM, static_cast<uint64_t>(step * o.batch + sequence));

    return bytes.data() + drawn % static_cast<uint64_t>(count() - o.tokens);
}

feed::feed(const text &t, const options &o, const std::vector<int64_t> &tokens, int64_t step,
           int64_t sequence0, int64_t batch)
{
    for (int64_t token : tokens)
        for (int64_t b = 0; b < batch; b++) {
            const uint8_t *at = t.at(o, step, sequence0 + b) + token;
            input.push_back(at[0]);
            target.push_back(at[1]);
        }
}
