/* minimal.c - the whole call sequence: causal attention over 1,000 tokens, forward and backward, split
 * over the ranks of mpirun. README.md shows it. */
#include <hra/mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 1000, HEADS = 8, HEADS_KV = 2, DIM = 64 };

static void try(hra_status status)
{
    if (status == HRA_OK)
        return;
    fprintf(stderr, "%s: %s\n", hra_status_name(status), hra_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
}

/* [rows][heads][DIM] of numbers from -0.5 to 0.5; one sequence, so the batch has no stride. */
static hra_tensor tensor(int64_t rows, int heads)
{
    float *data = calloc((size_t)(rows * heads * DIM) + 1, sizeof(float));
    for (int64_t i = 0; i < rows * heads * DIM; i++)
        data[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    return (hra_tensor){data, 0, heads * DIM, DIM};
}

int main(int argc, char **argv)
{
    const hra_domain domain = {.size = sizeof(domain), .heads = HEADS, .tokens = TOKENS};
    const hra_problem problem = {.size = sizeof(problem),
                                 .heads = HEADS,
                                 .heads_kv = HEADS_KV,
                                 .dim = DIM,
                                 .tokens = TOKENS,
                                 .type = HRA_F32};
    hra_plan_info info = {.size = sizeof(info)};
    hra_comm *comm;
    hra_mask *mask;
    hra_plan *plan;

    MPI_Init(&argc, &argv);
    try(hra_comm_create_mpi(&comm, MPI_COMM_WORLD, NULL));
    try(hra_mask_parse(&mask, &domain, NULL, "causal"));
    try(hra_plan_create(&plan, comm, &problem, NULL, mask, NULL)); /* once, for all layers and steps */
    try(hra_plan_get_info(plan, &info));

    const int64_t rows = hra_plan_rows(plan, hra_comm_rank(comm)); /* hra_plan_row_index: which tokens */
    hra_tensor q = tensor(rows, HEADS), k = tensor(rows, HEADS_KV), v = tensor(rows, HEADS_KV);
    hra_tensor o = tensor(rows, HEADS), g = tensor(rows, HEADS); /* output, and its gradient */
    hra_tensor dq = tensor(rows, HEADS), dk = tensor(rows, HEADS_KV), dv = tensor(rows, HEADS_KV);
    float *lse = calloc((size_t)rows * HEADS + 1, sizeof(float));
    void *workspace = aligned_alloc(64, info.workspace_bytes / 64 * 64 + 64);

    try(hra_forward(plan, &q, &k, &v, &o, lse, workspace, NULL, NULL));
    try(hra_backward(plan, &q, &k, &v, &o, lse, &g, NULL, &dq, &dk, &dv, workspace, NULL, NULL));
    printf("rank %d of %d: %lld rows, %lld of %lld pairs attend in all\n", hra_comm_rank(comm),
           hra_comm_ranks(comm), (long long)rows, (long long)info.pairs_live, (long long)info.pairs_all);

    hra_plan_destroy(plan);
    hra_mask_destroy(mask);
    try(hra_comm_destroy(comm));
    MPI_Finalize();
    return 0;
}
