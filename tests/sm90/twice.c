/* twice.c - does the sm90 backend's backward give the same bits every time? One rank, on the emulator, whose
 * threads run in another order each time. Blocks add to the same rows of dQ; in any order but the plan's the
 * sums would differ in their last bits, and now and then in what they are rounded to. */
#include "kernels/kernels.h"
#include "tests/sm90/help.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 600, HEADS = 4, HEADS_KV = 2, TIMES = 3 };

extern int64_t emulated_turns;

static size_t bytes_of(int heads, int dim)
{
    return sizeof(uint16_t) * TOKENS * (size_t)heads * (size_t)dim;
}

/* Returns 1 where the bits differ from time to time. */
static int check(const char *text, int dim)
{
    const hra_domain domain = {.size = sizeof(domain), .batch = 1, .heads = HEADS, .tokens = TOKENS};
    hra_problem problem = HRA_PROBLEM_INIT;
    hra_options options = HRA_OPTIONS_INIT;
    hra_plan_info info = {.size = sizeof(info)};
    hra_tensor q = make_f16(TOKENS, HEADS, dim, 1), k = make_f16(TOKENS, HEADS_KV, dim, 2),
               v = make_f16(TOKENS, HEADS_KV, dim, 3), out = make_f16(TOKENS, HEADS, dim, 4),
               o = make_f16(TOKENS, HEADS, dim, 0), gradient[TIMES][3];
    float *lse = take(sizeof(float) * TOKENS * HEADS);
    hra_comm *comm;
    hra_mask *mask;
    hra_plan *plan;
    int differ = 0;

    problem.batch = 1;
    problem.heads = HEADS;
    problem.heads_kv = HEADS_KV;
    problem.dim = dim;
    problem.tokens = TOKENS;
    problem.type = HRA_F16;
    problem.threads = 1;
    options.backend = HRA_BACKEND_SM90;
    need(hra_comm_create_self(&comm));
    need(hra_mask_parse(&mask, &domain, NULL, text));
    need(hra_plan_create(&plan, comm, &problem, NULL, mask, &options));
    need(hra_plan_get_info(plan, &info));
    void *workspace = take(info.workspace_bytes);
    need(hra_forward(plan, &q, &k, &v, &o, lse, workspace, NULL, NULL));
    const int64_t before = emulated_turns;
    for (int i = 0; i < TIMES; i++) {
        gradient[i][0] = make_f16(TOKENS, HEADS, dim, 0);
        gradient[i][1] = make_f16(TOKENS, HEADS_KV, dim, 0);
        gradient[i][2] = make_f16(TOKENS, HEADS_KV, dim, 0);
        memset(workspace, 0xff, info.workspace_bytes);
        need(hra_backward(plan, &q, &k, &v, &o, lse, &out, NULL, &gradient[i][0], &gradient[i][1],
                          &gradient[i][2], workspace, NULL, NULL));
        for (int n = 0; n < 3; n++)
            differ |= memcmp(gradient[0][n].data, gradient[i][n].data,
                             bytes_of(n == 0 ? HEADS : HEADS_KV, dim)) != 0;
    }
    printf("%-20s dim %3d  %2" PRId64 " launches  %s\n", text, dim, emulated_turns - before,
           differ ? "OTHER BITS" : "the same bits");

    for (int i = 0; i < TIMES; i++)
        for (int n = 0; n < 3; n++)
            free(gradient[i][n].data);
    free(q.data);
    free(k.data);
    free(v.data);
    free(o.data);
    free(out.data);
    free(lse);
    free(workspace);
    hra_plan_destroy(plan);
    hra_mask_destroy(mask);
    need(hra_comm_destroy(comm));
    return differ || emulated_turns - before < TIMES;
}

/* Every plan finds another number of multiprocessors: 1, 2, 3, 4. */
int main(void)
{
    int failed = check("full", 64);
    failed |= check("full", 128);
    failed |= check("window(200,200)", 64);
    failed |= check("full", 128);
    return failed;
}
