/* minimal.c - the whole call sequence: causal attention over 1,000 tokens, split over the ranks of mpirun. Built against
 * an installed libhra:
 *
 *     mpicc minimal.c $(pkg-config --cflags --libs hra-mpi) -o minimal && mpirun -n 4 ./minimal */
#include <hra/mpi.h>
#include <stdio.h>
#include <stdlib.h>

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        if ((call) != HRA_OK) {                                                                              \
            fprintf(stderr, "%s\n", hra_last_error());                                                       \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                                    \
        }                                                                                                    \
    } while (0)

int main(int argc, char **argv)
{
    hra_domain domain = {.size = sizeof(domain), .heads = 8, .tokens = 1000};
    hra_problem problem = {
        .size = sizeof(problem), .heads = 8, .heads_kv = 2, .dim = 64, .tokens = 1000, .type = HRA_F32};
    hra_plan_info info = {.size = sizeof(info)};
    hra_comm *comm;
    hra_mask *mask;
    hra_plan *plan;

    MPI_Init(&argc, &argv);
    TRY(hra_comm_create_mpi(&comm, MPI_COMM_WORLD, NULL));
    TRY(hra_mask_parse(&mask, &domain, "causal"));
    TRY(hra_plan_create(&plan, comm, &problem, NULL, mask, NULL));
    TRY(hra_plan_get_info(plan, &info));

    /* Our rows of q, k, v, o and of do, dq, dk, dv: here [rows][heads][dim], numbers of our own making. */
    const int64_t rows = hra_plan_rows(plan, hra_comm_rank(comm)), wide = rows * 8 * 64,
                  narrow = rows * 2 * 64;
    float *memory = calloc((size_t)(4 * wide + 4 * narrow + rows * 8) + 1, sizeof(float));
    void *workspace = aligned_alloc(64, info.workspace_bytes + (64 - info.workspace_bytes % 64));
    if (memory == NULL || workspace == NULL)
        MPI_Abort(MPI_COMM_WORLD, 1);
    hra_tensor q = {memory, 0, 8 * 64, 64}, o = {q.data, 0, 8 * 64, 64}, g = o, dq = o;
    hra_tensor k = {memory + 4 * wide, 0, 2 * 64, 64}, v = k, dk = k, dv = k;
    o.data = memory + wide, g.data = memory + 2 * wide, dq.data = memory + 3 * wide;
    v.data = memory + 4 * wide + narrow, dk.data = memory + 4 * wide + 2 * narrow;
    dv.data = memory + 4 * wide + 3 * narrow;
    float *lse = memory + 4 * wide + 4 * narrow;
    for (int64_t i = 0; i < 4 * wide + 2 * narrow; i++)
        memory[i] = (float)(i % 13) / 13 - 0.5f;

    TRY(hra_forward(plan, &q, &k, &v, &o, lse, workspace, NULL, NULL));
    TRY(hra_backward(plan, &q, &k, &v, &o, lse, &g, NULL, &dq, &dk, &dv, workspace, NULL, NULL));
    if (rows > 0)
        printf("rank %d of %d: %lld rows, lse of the first %.4f\n", hra_comm_rank(comm), hra_comm_ranks(comm),
               (long long)rows, lse[0]);

    free(memory);
    free(workspace);
    hra_plan_destroy(plan);
    hra_mask_destroy(mask);
    TRY(hra_comm_destroy(comm));
    MPI_Finalize();
    return 0;
}
