/* problem.h - an attention problem as the tools are given it: on the command line, or drawn. */
#ifndef HRA_TOOLS_PROBLEM_H
#define HRA_TOOLS_PROBLEM_H

#include <hra/hra.h>

/* Start from PROBLEM_DEFAULT; end with problem_free. */
struct problem {
    int64_t tokens;  /* of one sequence; 0 where a grid says it */
    int64_t grid[3]; /* as in hra_domain */
    char *order;     /* "identity", ..., or "random:SEED"; owned, NULL: identity */
    char *mask;      /* owned, NULL: causal */
    int batch, heads, heads_kv, head0, dim, dim_v; /* heads_kv and dim_v 0: as heads and dim */
    hra_type type;
    double scale; /* 0: 1/sqrt(dim) */
    hra_shard shard;
    hra_schedule_kind schedule;
    hra_backend_kind backend;
    hra_backward_kind backward;
    hra_saved_kind saved;
    hra_rows_kind rows;
    int threads;   /* 0: cores of the node / its ranks */
    int margin;    /* multiprocessors left free */
    int dlse;      /* 1: the loss depends on lse too */
    uint64_t seed; /* of the numbers in q k v dO dlse */
};

#define PROBLEM_DEFAULT                                                                                      \
    {                                                                                                        \
        .batch = 1, .heads = 4, .dim = 64, .type = HRA_F32, .seed = 1                                        \
    }

/* What the library is given for a problem. Everything in it is the setup's. */
struct setup {
    hra_domain domain;
    hra_order *order;
    hra_mask *mask;
    hra_problem problem; /* no field left to its default, but for threads */
    hra_options options;
};

/* One option of a command line. `at` is an int for INT and CHOICE, an int that becomes 1 for FLAG,
 * int64_t for INT64, uint64_t for SEED, double for REAL, int64_t [3] for GRID, char * for TEXT (a copy
 * that is the caller's; what was there is freed). */
enum option_kind {
    OPTION_INT,
    OPTION_INT64,
    OPTION_SEED,
    OPTION_REAL,
    OPTION_GRID,
    OPTION_TEXT,
    OPTION_CHOICE,
    OPTION_FLAG
};
struct option_choice {
    const char *text;
    int value;
};
struct option {
    const char *name; /* without the dashes */
    const char *what; /* its value in the help, such as "N"; choices: NULL */
    const char *help;
    enum option_kind kind;
    void *at;
    int64_t min, max;                    /* INT and INT64 */
    const struct option_choice *choices; /* CHOICE; ended by text NULL */
    int given;                           /* set by parsing: how often it stood there */
};

/* Room for the options of a problem. */
#define PROBLEM_OPTIONS 25

/* Write the options that set p, and return how many. */
int problem_options(struct option out[PROBLEM_OPTIONS], struct problem *p);

/* Read argv into the options' places. 0; 1 where --help asks for help; -1 and one sentence in
 * error [error_bytes] where something is wrong. Values already set stay set. */
int options_parse(struct option *options, int count, int argc, char **argv, char *error, size_t error_bytes);

/* One line for each option, to stdout. */
void options_print(const struct option *options, int count);

/* Fill in what p leaves to defaults and look for contradictions. 0, or -1 and one sentence. */
int problem_complete(struct problem *p, char *error, size_t error_bytes);

/* Make order and mask for a completed problem. A failure's sentence is hra_last_error's. */
hra_status setup_create(struct setup *out, const struct problem *p);

/* Accepts a zeroed setup. */
void setup_destroy(struct setup *s);

/* Draw problem `number` of the series `seed`, completed: small, of sizes that divide nothing, any
 * order, mask, shard, schedule, layout, and any type and saved that `backend` has. 0, or -1 where there is no memory. */
int problem_draw(struct problem *out, uint64_t seed, uint64_t number, hra_backend_kind backend);

/* A mask of any form that hra_mask_parse reads, for a domain of at most 2^40 tokens, drawn from `seed`:
 * its text, which parses where the parser is given an order of that domain. Every mask, with parameters
 * that matter for the domain, and combinations of them up to three deep; a text of some thousand
 * characters at most, but for heads() and batches() of many. The caller's to free, NULL where there is
 * no memory. */
char *mask_random(const hra_domain *domain, uint64_t seed);

/* The options that make p, one line without its end, for a shell; the caller's to free, NULL where
 * there is no memory. */
char *problem_text(const struct problem *p);

void problem_free(struct problem *p);

/* The n-th number of a series: 64 bits that depend on both and nothing else (splitmix64: Steele, Lea
 * and Flood 2014). */
uint64_t random_bits(uint64_t series, uint64_t n);

/* The n-th standard normal number of a series (Box and Muller 1958). */
double random_normal(uint64_t series, uint64_t n);

#endif
