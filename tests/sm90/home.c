/* home.c - does backward come to the same where kernels go on from what has come home as where that is added behind them? Two
 * ranks, a ring, on the emulator; the plan's machine says which. Of the first problem some key tiles are seen by the other rank
 * alone. */
#include "src/plan.h"
#include "tests/sm90/help.h"

#include <hra/mpi.h>
#include <math.h>

enum { HEADS = 4, HEADS_KV = 2, DIM = 64, WAYS = 2, GRADIENTS = 3 };

/* Do the gradients differ by more than the last bit of f16, or by more than sums of f32 in another order may where they are
 * small? */
static int differ(const hra_tensor *a, const hra_tensor *b)
{
    int found = 0;

    for (int64_t i = 0; i < a->stride_batch; i++) {
        const float x = hra_from_f16(((uint16_t *)a->data)[i]), y = hra_from_f16(((uint16_t *)b->data)[i]);
        found += !(fabsf(x - y) <= 0x1p-10f * fabsf(x) + 1e-5f);
    }
    return found;
}

/* Parts of ours that kernels begin at what has come home. */
static int count_continued(const hra_plan *plan)
{
    const struct hra_pass_plan *pass = &plan->pass[HRA_BACKWARD];
    int count = 0;

    for (int p = 0; p < pass->schedule.parts; p++)
        count += pass->home[p] >= 0;
    return count;
}

/* Returns 1 where the ways differ. */
static int check(hra_comm *comm, const char *text, int64_t tokens)
{
    const hra_domain domain = {.size = sizeof(domain), .batch = 1, .heads = HEADS, .tokens = tokens};
    const uint32_t seed = 10 * (uint32_t)hra_comm_rank(comm);
    hra_machine machine = {.size = sizeof(machine),
                           .inside = {.rate = 1e18},
                           .full = {1e12, 1e12},
                           .partial = {1e12, 1e12},
                           .launch_s = 1e-6,
                           .memory = 1e12};
    hra_problem problem = HRA_PROBLEM_INIT;
    hra_options options = HRA_OPTIONS_INIT;
    hra_tensor gradient[WAYS][GRADIENTS];
    int continued[WAYS], found = 0;
    hra_mask *mask;

    problem.batch = 1;
    problem.heads = HEADS;
    problem.heads_kv = HEADS_KV;
    problem.dim = DIM;
    problem.tokens = tokens;
    problem.type = HRA_F16;
    problem.threads = 1;
    options.backend = HRA_BACKEND_SM90;
    options.shard = HRA_SHARD_CONTIGUOUS;
    options.schedule = HRA_SCHEDULE_RING;
    options.machine = &machine;
    need(hra_mask_parse(&mask, &domain, NULL, text));
    for (int way = 0; way < WAYS; way++) {
        hra_plan_info info = {.size = sizeof(info)};
        hra_plan *plan;

        machine.inside.latency_s = way == 0 ? 1 : 0; /* all comes late, or nothing does */
        need(hra_plan_create(&plan, comm, &problem, NULL, mask, &options));
        need(hra_plan_get_info(plan, &info));
        const int64_t rows = hra_plan_rows(plan, hra_comm_rank(comm));
        hra_tensor q = make_f16(rows, HEADS, DIM, seed + 1), k = make_f16(rows, HEADS_KV, DIM, seed + 2),
                   v = make_f16(rows, HEADS_KV, DIM, seed + 3), out = make_f16(rows, HEADS, DIM, seed + 4),
                   o = make_f16(rows, HEADS, DIM, 0);
        float *lse = take(sizeof(*lse) * (size_t)rows * HEADS);
        void *workspace = take(info.workspace_bytes);
        for (int n = 0; n < GRADIENTS; n++)
            gradient[way][n] = make_f16(rows, n == 0 ? HEADS : HEADS_KV, DIM, 0);
        continued[way] = count_continued(plan);
        need(hra_forward(plan, &q, &k, &v, &o, lse, workspace, NULL, NULL));
        need(hra_backward(plan, &q, &k, &v, &o, lse, &out, NULL, &gradient[way][0], &gradient[way][1],
                          &gradient[way][2], workspace, NULL, NULL));
        free(q.data);
        free(k.data);
        free(v.data);
        free(out.data);
        free(o.data);
        free(lse);
        free(workspace);
        hra_plan_destroy(plan);
    }
    for (int n = 0; n < GRADIENTS; n++)
        found += differ(&gradient[0][n], &gradient[1][n]);
    printf("rank %d: %-50s %d and %d parts begin at what came home, %d numbers differ\n", hra_comm_rank(comm),
           text, continued[0], continued[1], found);
    for (int way = 0; way < WAYS; way++)
        for (int n = 0; n < GRADIENTS; n++)
            free(gradient[way][n].data);
    hra_mask_destroy(mask);
    return found > 0 || continued[0] != 0 || continued[1] != 1;
}

int main(int argc, char **argv)
{
    hra_comm *comm;

    MPI_Init(&argc, &argv);
    need(hra_comm_create_mpi(&comm, MPI_COMM_WORLD, NULL));
    int failed = check(comm, "blocks(128; 0:2 3; 1:0 2; 2:0; 3:1 0)", 512);
    failed |= check(comm, "full", 700);
    need(hra_comm_destroy(comm));
    MPI_Finalize();
    return failed;
}
