/* margin.c - does the sm90 backend leave as many multiprocessors free as problem.sm_margin says? One rank, on the
 * emulator, where every plan finds another number of them, 1 to 4, and there is work for all. */
#include "kernels/kernels.h"
#include "tests/sm90/help.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 900, HEADS = 2, DIM = 64, MARGIN = 1 };

extern int emulated_processors; /* that the last plan found */
extern int emulated_blocks;     /* most of a launch that attends or differentiates */

static hra_tensor make_tensor(void)
{
    const int64_t count = (int64_t)TOKENS * HEADS * DIM;
    const size_t bytes = (size_t)count * sizeof(uint16_t);
    return (hra_tensor){memset(take(bytes), 0, bytes), count, (int64_t)HEADS * DIM, DIM};
}

/* The most blocks of a forward and a backward. */
static int run(hra_plan *plan)
{
    hra_plan_info info = {.size = sizeof(info)};
    hra_tensor t[8];
    float *lse = take(sizeof(float) * TOKENS * HEADS);

    for (int i = 0; i < 8; i++)
        t[i] = make_tensor();
    need(hra_plan_get_info(plan, &info));
    void *workspace = take(info.workspace_bytes);
    emulated_blocks = 0;
    need(hra_forward(plan, &t[0], &t[1], &t[2], &t[3], lse, workspace, NULL, NULL));
    const int forward = emulated_blocks;
    emulated_blocks = 0;
    need(hra_backward(plan, &t[0], &t[1], &t[2], &t[3], lse, &t[4], NULL, &t[5], &t[6], &t[7], workspace,
                      NULL, NULL));
    printf("%d multiprocessors, %d left: %d blocks forward, %d backward\n", emulated_processors, MARGIN,
           forward, emulated_blocks);
    const int most = forward > emulated_blocks ? forward : emulated_blocks;
    for (int i = 0; i < 8; i++)
        free(t[i].data);
    free(lse);
    free(workspace);
    return most;
}

int main(void)
{
    const hra_domain domain = {.size = sizeof(domain), .batch = 1, .heads = HEADS, .tokens = TOKENS};
    hra_problem problem = HRA_PROBLEM_INIT;
    hra_options options = HRA_OPTIONS_INIT;
    hra_comm *comm;
    hra_mask *mask;
    int failed = 0, refused = 0;

    problem.batch = 1;
    problem.heads = HEADS;
    problem.dim = DIM;
    problem.tokens = TOKENS;
    problem.type = HRA_BF16;
    problem.sm_margin = MARGIN;
    options.backend = HRA_BACKEND_SM90;
    need(hra_comm_create_self(&comm));
    need(hra_mask_parse(&mask, &domain, NULL, "full"));
    for (int i = 0; i < 4; i++) {
        hra_plan *plan = NULL;
        const hra_status status = hra_plan_create(&plan, comm, &problem, NULL, mask, &options);
        if (emulated_processors <= MARGIN) {
            printf("%d multiprocessor: %s\n", emulated_processors, hra_last_error());
            failed |= status != HRA_ERR_UNSUPPORTED;
            refused++;
            continue;
        }
        need(status);
        failed |= run(plan) != emulated_processors - MARGIN;
        hra_plan_destroy(plan);
    }
    options.backward = HRA_BACKWARD_CUBLAS; /* has no hold on what cuBLAS takes */
    hra_plan *plan = NULL;
    failed |= hra_plan_create(&plan, comm, &problem, NULL, mask, &options) != HRA_ERR_UNSUPPORTED;
    hra_mask_destroy(mask);
    need(hra_comm_destroy(comm));
    printf("%s\n", failed || refused != 1 ? "WRONG" : "ok");
    return failed || refused != 1;
}
