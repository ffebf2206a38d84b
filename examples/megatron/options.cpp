/* options.cpp - see options.hpp. */
#include "options.hpp"
#include "fail.hpp"

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <vector>

namespace
{
/* One option: its name, how --help shows it, and what its value does. No value name: a switch. */
struct option {
    const char *name, *value, *help;
    std::function<void(options &, const char *)> set;
};

int64_t whole(const char *name, const char *text, int64_t least, int64_t most)
{
    char *end;

    errno = 0;
    const long long n = std::strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || n < least || n > most)
        throw wrong(sentence("%s %s: must be a whole number from %lld to %lld", name, text,
                             static_cast<long long>(least), static_cast<long long>(most)));
    return n;
}

option number(const char *name, const char *help, int64_t options::*field, int64_t least, int64_t most)
{
    return {name, "N", help,
            [=](options &o, const char *text) { o.*field = whole(name, text, least, most); }};
}

option real(const char *name, const char *help, double options::*field)
{
    return {name, "X", help, [=](options &o, const char *text) {
                char *end;
                o.*field = std::strtod(text, &end);
                if (end == text || *end != '\0' || !(o.*field >= 0) || o.*field > 1)
                    throw wrong(sentence("%s %s: must be a number from 0 to 1", name, text));
            }};
}

option words(const char *name, const char *value, const char *help, std::string options::*field)
{
    return {name, value, help, [=](options &o, const char *text) {
                if (*text == '\0')
                    throw wrong(sentence("%s must not be empty", name));
                o.*field = text;
            }};
}

void set_grid(options &o, const char *text)
{
    int end = 0;
    grid_size &g = o.grid;

    if (std::sscanf(text, "%6dx%6dx%6d%n", &g.tensor, &g.context, &g.data, &end) != 3 || text[end] != '\0' ||
        g.tensor < 1 || g.context < 1 || g.data < 1)
        throw wrong(sentence("--grid %s: must be TENSORxCONTEXTxDATA, such as 2x2x2, each at least 1", text));
}

void set_backend(options &o, const char *text)
{
    const std::string name = text;

    if (name != "cpu" && name != "cuda")
        throw wrong(sentence("--backend %s: must be cpu or cuda", text));
#ifndef MEGATRON_CUDA
    if (name == "cuda")
        throw wrong("--backend cuda: this program was built without CUDA");
#endif
    o.backend = name == "cuda" ? HRA_BACKEND_GPU : HRA_BACKEND_CPU;
}

void set_type(options &o, const char *text)
{
    for (hra_type type : {HRA_F32, HRA_F64, HRA_BF16})
        if (std::string(text) == hra_type_name(type)) {
            o.type = type;
            return;
        }
    throw wrong(sentence("--type %s: must be f32, f64 or bf16", text));
}

const std::vector<option> &all_options()
{
    constexpr int64_t MANY = 1 << 24;
    static const std::vector<option> all = {
        words("--text", "FILE", "learn the bytes of this text", &options::text),
        {"--grid", "TxCxD", "tensor, context and data ranks (1 x all x 1)", set_grid},
        {"--backend", "NAME", "cpu or cuda (cpu)", set_backend},
        {"--type", "NAME", "of activations: f32, f64, bf16 (cpu f32, cuda bf16)", set_type},
        number("--layers", "layers (4)", &options::layers, 1, 1000),
        number("--channels", "channels of a token (128)", &options::channels, 2, 65536),
        number("--heads", "query heads (4)", &options::heads, 1, 4096),
        number("--kv-heads", "key and value heads (as --heads)", &options::heads_kv, 1, 4096),
        number("--hidden", "width of the MLP (4 x channels)", &options::hidden, 1, MANY),
        number("--tokens", "bytes of a sequence (1024)", &options::tokens, 1, MANY),
        number("--batch", "sequences of a step, over all data ranks (4)", &options::batch, 1, MANY),
        number("--steps", "steps (100)", &options::steps, 1, 100000000),
        number("--warmup", "steps over which the learning rate rises (10)", &options::warmup, 0, 100000000),
        real("--lr", "highest learning rate (0.001)", &options::rate),
        real("--decay", "weight decay (0.1)", &options::decay),
        number("--seed", "of weights and of the order of the data (1)", &options::seed, 0, INT64_MAX),
        words("--mask", "TEXT", "who attends to whom; causal is always in force too (causal)",
              &options::mask),
        words("--order", "NAME", "in which tokens are spread over context ranks (identity)", &options::order),
        number("--threads", "CPU threads of a rank (cores of the node / its ranks)", &options::threads, 1,
               4096),
        words("--json", "FILE", "write a line of JSON for each step", &options::json),
        {"--check", "", "compare the first gradients with those of one rank in f64, and end",
         [](options &o, const char *) { o.check = true; }},
        {"--help", "", "show this", [](options &o, const char *) { o.help = true; }},
    };
    return all;
}

void must_divide(const char *what, int64_t value, const char *by, int64_t divisor)
{
    if (value % divisor != 0)
        throw wrong(sentence("%s %lld: must be a multiple of %s %lld", what, static_cast<long long>(value),
                             by, static_cast<long long>(divisor)));
}

void check_heads(const options &o)
{
    const int64_t piece =
        o.backend == HRA_BACKEND_CPU ? 2 : 16 / static_cast<int64_t>(hra_type_bytes(o.type));

    must_divide("--channels", o.channels, "--heads", o.heads);
    must_divide("--heads", o.heads, "--kv-heads", o.heads_kv);
    must_divide("--heads", o.heads, "the grid's tensor ranks,", o.grid.tensor);
    must_divide("--kv-heads", o.heads_kv, "the grid's tensor ranks,", o.grid.tensor);
    must_divide("--hidden", o.hidden, "the grid's tensor ranks,", o.grid.tensor);
    /* Pairs of channels are turned; on GPUs libhra wants heads that begin at 16 bytes. */
    if (o.dim() % piece != 0 || o.dim() > 256)
        throw wrong(sentence("--channels %lld and --heads %lld: heads have %lld channels; must be a multiple "
                             "of %lld and at most 256",
                             static_cast<long long>(o.channels), static_cast<long long>(o.heads),
                             static_cast<long long>(o.dim()), static_cast<long long>(piece)));
}

void check_all(const options &o, int ranks)
{
    const grid_size &g = o.grid;
    const int64_t product = static_cast<int64_t>(g.tensor) * g.context * g.data;

    if (o.text.empty())
        throw wrong("give --text FILE (--help shows all options)");
    if (product != ranks)
        throw wrong(sentence("--grid %dx%dx%d: takes %lld ranks, there are %d", g.tensor, g.context, g.data,
                             static_cast<long long>(product), ranks));
    if (g.tensor > 256)
        throw wrong(sentence("--grid %dx%dx%d: more tensor ranks than the 256 bytes that the vocabulary has",
                             g.tensor, g.context, g.data));
    if (o.backend == HRA_BACKEND_GPU && o.type == HRA_F64)
        throw wrong("--type f64 goes with --backend cpu only");
    check_heads(o);
    must_divide("--batch", o.batch, "the grid's data ranks,", g.data);
    if (g.data > 1 && o.mask.find("batches") != std::string::npos)
        throw wrong("--mask: batches() numbers the sequences of one data rank, so it takes a grid of one");
    if (o.tokens * o.local_batch() > INT32_MAX / 4)
        throw wrong(sentence("--tokens %lld and --batch %lld: more rows than this program can number",
                             static_cast<long long>(o.tokens), static_cast<long long>(o.batch)));
}
} // namespace

options parse_options(int argc, char **argv, int ranks)
{
    options o;
    bool typed = false;

    o.grid.context = ranks;
    for (int i = 1; i < argc; i++) {
        const option *found = nullptr;
        for (const option &one : all_options())
            if (std::string(argv[i]) == one.name)
                found = &one;
        if (found == nullptr)
            throw wrong(sentence("unknown option %s (--help shows all)", argv[i]));
        if (*found->value != '\0' && ++i == argc)
            throw wrong(sentence("%s needs %s after it", found->name, found->value));
        found->set(o, argv[i]);
        typed |= std::string(found->name) == "--type";
    }
    if (o.help)
        return o;
    if (!typed && o.backend == HRA_BACKEND_GPU)
        o.type = HRA_BF16;
    if (o.heads_kv == 0)
        o.heads_kv = o.heads;
    if (o.hidden == 0)
        o.hidden = 4 * o.channels;
    check_all(o, ranks);
    return o;
}

void print_help()
{
    std::printf("usage: mpirun -n RANKS megatron --text FILE [options]\n"
                "Trains a transformer on a grid of tensor, context and data ranks, its attention through\n"
                "libhra. The same options give the same losses on any grid, up to rounding.\n\n");
    for (const option &one : all_options())
        std::printf("  %-16s %s\n", (std::string(one.name) + " " + one.value).c_str(), one.help);
}
