/* resume.c - does the sm90 backend give the same bits however its lists are cut? Where halves of key tiles are packed they
 * are so within parts, and so it is asked of cuts into the same parts. One rank, whose own keys a
 * schedule cuts into parts: one part; eight in a run each; eight and nine in one call, of which a launch
 * takes HRA_SM90_CHUNKS; and query tiles and heads that go separate ways. And are rows without keys 0, in
 * tiles whose other rows have some? Run on the emulator. */
#include "kernels/cpu/number.h"
#include "kernels/sm90/forward.h"
#include "src/plan.h"
#include "tests/sm90/help.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 1100, HEADS = 2, LSE_BYTES = (int)sizeof(float) * TOKENS * HEADS };

extern int64_t emulated_launches;

/* How the keys are cut. Launches follow from it, and show that they were. */
static const struct cut {
    const char *name;
    int parts;
    int one_call;     /* 1: all parts in one run; 0: a run each */
    int heads;        /* ranges of K/V heads */
    int queries;      /* ranges of query tiles */
    int64_t launches; /* with the mask `full` */
    int like;         /* the cut with the same parts, before it or itself */
} cuts[] = {
    {"one part", 1, 1, 1, 1, 1, 0},
    {"8 runs", 8, 0, 1, 1, 8, 1},
    {"8 parts in a call", 8, 1, 1, 1, 1, 1},
    {"9 parts in a call", 9, 1, 1, 1, 2, 3},
    {"9 runs", 9, 0, 1, 1, 9, 3},
    {"4 parts in a call", 4, 1, 1, 1, 1, 5},
    {"heads and queries", 4, 0, 2, 3, 24, 5},
};

enum { CUTS = sizeof(cuts) / sizeof(cuts[0]) };

static const struct cut *cut; /* of the plan that is being made */

static hra_status add_runs(struct hra_schedule *out, int query0, int query1)
{
    if (cut->one_call)
        HRA_TRY(hra_schedule_run(out, query0, query1));
    for (int part = 0; part < cut->parts * cut->heads; part++) {
        if (!cut->one_call)
            HRA_TRY(hra_schedule_run(out, query0, query1));
        HRA_TRY(hra_schedule_source(
            out, (struct hra_source){.part = part, .buffer = HRA_OWN, .gradient = HRA_OWN}));
    }
    return HRA_OK;
}

static hra_status generate(struct hra_schedule *out, const struct hra_work *w, int rank, hra_pass pass)
{
    const int first = w->rank_tile[rank], tiles = w->rank_tile[rank + 1] - first;

    if (pass == HRA_BACKWARD)
        return hra_schedule_ring(out, w, rank, pass);
    for (int h = 0; h < cut->heads; h++)
        for (int i = 0; i < cut->parts; i++)
            HRA_TRY(
                hra_schedule_part(out, (struct hra_part){.owner = rank,
                                                         .key_tile0 = first + tiles * i / cut->parts,
                                                         .key_tile1 = first + tiles * (i + 1) / cut->parts,
                                                         .head0 = w->heads_kv * h / cut->heads,
                                                         .head1 = w->heads_kv * (h + 1) / cut->heads}));
    HRA_TRY(hra_schedule_round(out));
    for (int q = 0; q < cut->queries; q++)
        HRA_TRY(add_runs(out, tiles * q / cut->queries, tiles * (q + 1) / cut->queries));
    return HRA_OK;
}

/* A tensor [TOKENS][heads][dim] of bf16; seed 0: left as it is. */
static hra_tensor make_tensor(int heads, int dim, uint32_t seed)
{
    const int64_t count = (int64_t)TOKENS * heads * dim;
    uint16_t *data = take((size_t)count * sizeof(*data));

    for (int64_t i = 0; seed != 0 && i < count; i++) {
        seed = seed * 1664525 + 1013904223;
        data[i] = hra_to_bf16((float)seed * 0x1p-30f - 2); /* -2 to 2 */
    }
    return (hra_tensor){data, count, (int64_t)heads * dim, dim};
}

/* What all cuts of one problem have in common, and the outputs of each. */
struct trial {
    const char *text; /* of the mask */
    int packs;        /* 1: its lists are packed */
    hra_mask *mask;
    hra_comm *comm;
    hra_problem problem;
    hra_tensor q, k, v, o[CUTS];
    float *lse[CUTS];
};

/* Compute with cut i. Returns how many launches it took. */
static int64_t attend(struct trial *t, int i)
{
    hra_options options = HRA_OPTIONS_INIT;
    hra_plan_info info = {.size = sizeof(info)};
    hra_plan *plan;

    cut = &cuts[i];
    options.backend = HRA_BACKEND_SM90;
    need(hra_plan_create_with(&plan, t->comm, &t->problem, NULL, t->mask, &options, generate));
    need(hra_plan_get_info(plan, &info));
    void *workspace = take(info.workspace_bytes);
    t->o[i] = make_tensor(HEADS, t->problem.dim, 0);
    t->lse[i] = take(LSE_BYTES);
    const int64_t before = emulated_launches;
    need(hra_forward(plan, &t->q, &t->k, &t->v, &t->o[i], t->lse[i], workspace, NULL, NULL));
    free(workspace);
    hra_plan_destroy(plan);
    return emulated_launches - before;
}

/* Returns 1 where cut i is not as it should be. */
static int check_cut(struct trial *t, int i)
{
    const int64_t launches = attend(t, i);
    const size_t o_bytes = sizeof(uint16_t) * TOKENS * HEADS * (size_t)t->problem.dim;
    const int like = t->packs ? cuts[i].like : 0;
    const int same = memcmp(t->o[like].data, t->o[i].data, o_bytes) == 0 &&
                     memcmp(t->lse[like], t->lse[i], LSE_BYTES) == 0;
    const int cut_so = strcmp(t->text, "full") != 0 || launches == cut->launches;

    printf("%-8s dim %3d  %-20s %3" PRId64 " launches  %s%s\n", t->text, t->problem.dim, cut->name, launches,
           same ? "the same bits" : "OTHER BITS", cut_so ? "" : ", NOT CUT SO");
    return !same || !cut_so;
}

/* Returns 1 where a row without keys has an O other than 0 or a log-sum other than -inf, or where a row with
 * keys has a log-sum that is not finite. Looks at the outputs of the first cut; the others have its bits. */
static int check_rows(const struct trial *t)
{
    const int dim = t->problem.dim;
    int without = 0, wrong = 0;

    for (int row = 0; row < HEADS * TOKENS; row++) {
        const int head = row / TOKENS, token = row % TOKENS;
        const uint16_t *o =
            (const uint16_t *)t->o[0].data + ((size_t)token * HEADS + (size_t)head) * (size_t)dim;
        const float lse = t->lse[0][row];
        int key = 0, zeros = 0;

        while (key < TOKENS && hra_mask_count(t->mask, 0, head, token, key) == 0)
            key++;
        while (zeros < dim && o[zeros] == 0)
            zeros++;
        without += key == TOKENS;
        wrong += key < TOKENS ? !isfinite(lse) : !(lse == -INFINITY && zeros == dim);
    }
    printf("%-8s dim %3d  %d rows without keys  %s\n", t->text, dim, without, wrong == 0 ? "right" : "WRONG");
    return wrong != 0;
}

static int check(const char *text, int dim, int packs)
{
    const hra_domain domain = {.size = sizeof(domain), .batch = 1, .heads = HEADS, .tokens = TOKENS};
    struct trial t = {.text = text,
                      .packs = packs,
                      .problem = HRA_PROBLEM_INIT,
                      .q = make_tensor(HEADS, dim, 1),
                      .k = make_tensor(HEADS, dim, 2),
                      .v = make_tensor(HEADS, dim, 3)};
    int failed = 0;

    t.problem.batch = 1;
    t.problem.heads = t.problem.heads_kv = HEADS;
    t.problem.dim = dim;
    t.problem.tokens = TOKENS;
    t.problem.type = HRA_BF16;
    t.problem.threads = 1;
    need(hra_comm_create_self(&t.comm));
    need(hra_mask_parse(&t.mask, &domain, NULL, text));
    for (int i = 0; i < CUTS; i++)
        failed |= check_cut(&t, i);
    failed |= check_rows(&t);

    for (int i = 0; i < CUTS; i++) {
        free(t.o[i].data);
        free(t.lse[i]);
    }
    free(t.q.data);
    free(t.k.data);
    free(t.v.data);
    hra_mask_destroy(t.mask);
    need(hra_comm_destroy(t.comm));
    return failed;
}

int main(void)
{
    int failed = check("full", 128, 0);
    failed |= check("causal", 64, 0);
    failed |= check("heads(0: causal; 1: window(64,64))", 128, 1);
    /* Of rows of one tile, some have keys in the first part, some in the last only, some none. */
    failed |= check("blocks(50; 0:0 1; 1:20; 3:0 20)", 64, 1);
    failed |= check("blocks(50; 0:0 1; 1:20; 3:0 20)", 128, 1);
    failed |= check("mix(window(100,0); causal; dilated(256,4,0,keys))", 64, 0);
    return failed;
}
