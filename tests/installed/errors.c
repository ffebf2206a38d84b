/* errors.c - makes the mistakes of docs/troubleshooting.md on two ranks and prints what libhra says, a line each;
 * tests/installed.sh looks for the lines there. */
#include <hra/mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 600, HEADS = 4, DIM = 16 };

static int rank;

/* What a call said, on the rank that is asked; a mistake that no longer is one says nothing. */
static void say(int on, hra_status status)
{
    if (rank == on && status != HRA_OK)
        printf("%s: %s\n", hra_status_name(status), hra_last_error());
}

static void must(hra_status status)
{
    if (status == HRA_OK)
        return;
    fprintf(stderr, "rank %d: %s: %s\n", rank, hra_status_name(status), hra_last_error());
    abort();
}

static hra_problem problem_of(int64_t tokens)
{
    hra_problem problem = HRA_PROBLEM_INIT;
    problem.heads = HEADS;
    problem.dim = DIM;
    problem.tokens = tokens;
    problem.type = HRA_F32;
    problem.threads = 1;
    return problem;
}

static hra_mask *mask_of(int64_t tokens, int heads, const char *text)
{
    hra_domain domain = HRA_DOMAIN_INIT;
    hra_mask *mask;
    domain.tokens = tokens;
    domain.heads = heads;
    must(hra_mask_parse(&mask, &domain, NULL, text));
    return mask;
}

/* A plan that cannot be made; nothing is left of it. */
static void refuse_plan(int on, hra_comm *comm, const hra_problem *problem, hra_mask *mask,
                        const hra_options *options)
{
    hra_plan *plan = NULL;
    say(on, hra_plan_create(&plan, comm, problem, NULL, mask, options));
    hra_plan_destroy(plan);
    hra_mask_destroy(mask);
}

/* What is wrong before any rank is needed. */
static void arguments(void)
{
    hra_comm *comm;
    hra_mask *mask = NULL;
    hra_plan *plan;
    hra_domain domain = HRA_DOMAIN_INIT;
    hra_problem problem = problem_of(TOKENS), bare = problem, second = problem;
    struct {
        hra_problem problem;
        int64_t unknown;
    } later = {problem, 1};
    hra_options options = HRA_OPTIONS_INIT;

    domain.tokens = 4000;
    say(0, hra_mask_parse(&mask, &domain, NULL, "grid(16,16)"));
    hra_order *order = NULL;
    say(0, hra_order_create(&order, &domain, "residues:128"));
    domain.grid[0] = domain.grid[1] = 64;
    say(0, hra_mask_parse(&mask, &domain, NULL, "grid(16,16)"));

    must(hra_comm_create_self(&comm));
    bare.size = 0;
    refuse_plan(0, comm, &bare, mask_of(TOKENS, HEADS, "causal"), NULL);
    later.problem.size = sizeof(later);
    refuse_plan(0, comm, &later.problem, mask_of(TOKENS, HEADS, "causal"), NULL);
    second.head0 = HEADS;
    refuse_plan(0, comm, &second, mask_of(TOKENS, HEADS, "causal"), NULL);
    second = problem;
    second.tokens_kv = 77;
    refuse_plan(0, comm, &second, mask_of(TOKENS, HEADS, "causal"), NULL);
    second = problem;
    second.heads_kv = 1;
    options.schedule = HRA_SCHEDULE_HEADS;
    refuse_plan(0, comm, &second, mask_of(TOKENS, HEADS, "causal"), &options);
    options = (hra_options)HRA_OPTIONS_INIT;
    options.backend = HRA_BACKEND_CUDA;
    refuse_plan(0, comm, &problem, mask_of(TOKENS, HEADS, "causal"), &options);

    mask = mask_of(TOKENS, HEADS, "causal");
    must(hra_plan_create(&plan, comm, &problem, NULL, mask, NULL));
    float *x = calloc(TOKENS * HEADS * DIM, sizeof(*x)), *y = calloc(TOKENS * HEADS * DIM, sizeof(*y));
    const hra_tensor in = {x, 0, HEADS * DIM, DIM}, out = {y, 0, HEADS * DIM, DIM};
    const hra_tensor bytes = {y, 0, DIM * sizeof(float), HEADS * DIM * sizeof(float)}; /* and swapped */
    hra_plan_info info = {.size = sizeof(info)};
    must(hra_plan_get_info(plan, &info));
    char *workspace = aligned_alloc(64, info.workspace_bytes / 64 * 64 + 128);
    say(0, hra_forward(plan, &in, &in, &in, &out, NULL, workspace + 16, NULL, NULL));
    say(0, hra_forward(plan, &in, &in, &in, &bytes, NULL, workspace, NULL, NULL));
    say(0, hra_forward(plan, &in, &in, &in, &out, NULL, workspace, NULL, x));
    say(0, hra_comm_destroy(comm));
    hra_plan_destroy(plan);
    must(hra_comm_destroy(comm));

    must(hra_comm_create_model(&comm, 0, 8));
    must(hra_plan_create(&plan, comm, &problem, NULL, mask, NULL));
    say(0, hra_forward(plan, &in, &in, &in, &out, NULL, workspace, NULL, NULL));
    hra_plan_destroy(plan);
    hra_mask_destroy(mask);
    must(hra_comm_destroy(comm));
    free(workspace);
    free(x);
    free(y);
}

/* Ranks that were given different things. */
static void mismatches(void)
{
    hra_comm *comm;
    hra_problem problem = problem_of(rank == 1 ? 128 : 256);

    must(hra_comm_create_mpi(&comm, MPI_COMM_WORLD, NULL));
    refuse_plan(0, comm, &problem, mask_of(problem.tokens, HEADS, "full"), NULL);
    problem = problem_of(TOKENS);
    problem.head0 = rank * HEADS;
    refuse_plan(0, comm, &problem, mask_of(TOKENS, 2 * HEADS, "full"), NULL);
    problem = problem_of(TOKENS);
    refuse_plan(0, comm, &problem, mask_of(TOKENS, HEADS, rank == 1 ? "docs(100,500)" : "docs(250,350)"),
                NULL);
    const hra_link link = {.rate = rank == 1 ? 2e9 : 1e9};
    const hra_machine machine = {.size = sizeof(machine),
                                 .inside = link,
                                 .between = link,
                                 .full = {1e12, 1e12},
                                 .partial = {1e12, 1e12},
                                 .memory = 1e12};
    hra_options options = HRA_OPTIONS_INIT;
    options.machine = &machine;
    refuse_plan(0, comm, &problem, mask_of(TOKENS, HEADS, "full"), &options);
    must(hra_comm_destroy(comm));
}

/* Rank 1 does not come. */
static void absences(void)
{
    hra_comm_options options = HRA_COMM_OPTIONS_INIT;
    hra_comm *first, *second, *third;
    hra_plan *plan = NULL;
    hra_plan_info info = {.size = sizeof(info)};
    const hra_problem problem = problem_of(TOKENS);
    hra_mask *mask = mask_of(TOKENS, HEADS, "full");
    float *x = calloc(TOKENS * HEADS * DIM, sizeof(*x)), *y = calloc(TOKENS * HEADS * DIM, sizeof(*y));
    const hra_tensor in = {x, 0, HEADS * DIM, DIM}, out = {y, 0, HEADS * DIM, DIM};

    options.timeout_s = 1;
    MPI_Barrier(MPI_COMM_WORLD); /* until here ranks may have come far apart */
    must(hra_comm_create_mpi(&first, MPI_COMM_WORLD, &options));
    must(hra_comm_create_mpi(&second, MPI_COMM_WORLD, &options));
    must(hra_comm_create_mpi(&third, MPI_COMM_WORLD, &options));
    must(hra_plan_create(&plan, first, &problem, NULL, mask, NULL));
    must(hra_plan_get_info(plan, &info));
    void *workspace = aligned_alloc(64, info.workspace_bytes / 64 * 64 + 64);
    if (rank == 0) {
        say(0, hra_forward(plan, &in, &in, &in, &out, NULL, workspace, NULL, NULL));
        say(0, hra_forward(plan, &in, &in, &in, &out, NULL, workspace, NULL, NULL));
        hra_plan *other = NULL;
        say(0, hra_plan_create(&other, second, &problem, NULL, mask, NULL));
        say(0, hra_comm_destroy(third));
    }
    MPI_Barrier(MPI_COMM_WORLD);
    hra_plan_destroy(plan);
    hra_mask_destroy(mask);
    free(workspace);
    free(x);
    free(y);
}

int main(int argc, char **argv)
{
    hra_comm *comm = NULL;
    hra_comm_options options = HRA_COMM_OPTIONS_INIT;
    unsigned char id[HRA_UNIQUE_ID_BYTES];
    const hra_status early = hra_comm_create_mpi(&comm, MPI_COMM_WORLD, NULL);
    char said[512];

    snprintf(said, sizeof(said), "%s: %s", hra_status_name(early), hra_last_error());
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank == 0)
        puts(said);
    arguments();
    say(0, hra_comm_get_unique_id(id));
    options.transport = HRA_TRANSPORT_GPU;
    const hra_status made = hra_comm_create_mpi(&comm, MPI_COMM_WORLD, &options);
    say(0, made);
    if (made == HRA_OK)
        must(hra_comm_destroy(comm));
    mismatches();
    absences();
    MPI_Finalize();
    return 0;
}
