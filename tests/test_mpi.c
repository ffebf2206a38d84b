/* test_mpi.c - what needs several ranks: each row starts tests/mpi/worker.c, or hra-check, under mpirun. Criterion runs
 * every test in a process of its own, and MPI_Init works once per rank that mpirun made, so ranks cannot be Criterion's
 * processes. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

extern char **environ;

/* Exit status of `timeout SECONDS mpirun -n RANKS PROGRAM FIRST SECOND`; HRA_MPIEXEC has mpirun and its options. */
static int run_ranks(int ranks, const char *program, const char *first, const char *second, int seconds)
{
    char command[2048];
    char *argv[] = {"sh", "-c", command, NULL};
    pid_t child;
    int status = -1;

    snprintf(command, sizeof(command), "exec timeout -k 5 %d %s -n %d %s %s %s", seconds,
             getenv("HRA_MPIEXEC"), ranks, program, first, second);
    if (posix_spawnp(&child, "sh", NULL, NULL, argv, environ) != 0 || waitpid(child, &status, 0) != child)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Values only: Criterion copies the rows into another process. */
struct row {
    int ranks;
    char test[48], argument[24];
};

ParameterizedTestParameters(mpi, worker)
{
    static struct row rows[] = {
        {3, "direct", ""},     {5, "direct", ""},     {2, "direct", ""}, /* a schedule that is no ring */
        {8, "direct", ""},                                               /* one tile a rank: no second part */
        {3, "cut", ""},        {3, "threads", ""},    {4, "together", ""},  {3, "disagree", ""},
        {3, "refused", ""},    {4, "packed", ""},     {3, "halo", ""},      {8, "halo", ""},
        {2, "limits", "pass"}, {2, "limits", "plan"}, {4, "posts", ""},     {2, "gap", ""},
        {2, "ranges", ""},     {2, "lines", ""},      {1, "trace", "ring"}, {4, "trace", "ring"},
        {3, "trace", "halo"},  {4, "trace", "few"}, /* rank 3 has no rows */
    };
    return cr_make_param_array(struct row, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct row *r, mpi, worker, .timeout = 200)
{
    cr_expect(eq(int, run_ranks(r->ranks, getenv("HRA_WORKER"), r->test, r->argument, 180), 0),
              "%d ranks, %s %s", r->ranks, r->test, r->argument);
}

#define PEER "--backend cuda --transport peer --timeout 60"

/* What between GPUs needs no GPU: tests/peer/worker.c, where all streams have queues of their own, and where they share one. */
ParameterizedTestParameters(mpi, peer)
{
    static struct row rows[] = {{2, "hops", "1"},   {3, "hops", "2"},   {2, "rounds", "3"},
                                {3, "rounds", "4"}, {4, "rounds", "5"}, {4, "rounds", "6"},
                                {5, "rounds", "7"}, {4, "held", "8"},   {3, "absent", ""}};
    return cr_make_param_array(struct row, rows, sizeof(rows) / sizeof(rows[0]));
}

static void expect_peer(const struct row *r, const char *variable)
{
    if (getenv(variable) == NULL)
        cr_skip_test("the headers of CUDA are not here");
    for (int queues = 0; queues <= 1; queues++) {
        char program[1024];
        snprintf(program, sizeof(program), "env HRA_TEST_QUEUES=%d %s", queues, getenv(variable));
        cr_expect(eq(int, run_ranks(r->ranks, program, r->test, r->argument, 90), 0),
                  "%d ranks, %s %s, queues %d", r->ranks, r->test, r->argument, queues);
    }
}

ParameterizedTest(struct row *r, mpi, peer, .timeout = 200)
{
    expect_peer(r, "HRA_PEER_WORKER");
}

/* Whole random problems there, with the CPU's kernels: plans, the executor and the transport of several GPUs. */
ParameterizedTestParameters(mpi, peer_problems)
{
    static struct row rows[] = {{2, PEER, "--random 30 --seed 22"},
                                {3, PEER, "--random 30 --seed 23"},
                                {5, PEER, "--random 30 --seed 25"},
                                {8, PEER, "--random 15 --seed 28"},
                                {4, PEER, "--tokens 1500 --heads 2"}};
    return cr_make_param_array(struct row, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct row *r, mpi, peer_problems, .timeout = 300)
{
    expect_peer(r, "HRA_PEER_CHECK");
}

/* One rank goes away. mpirun itself fails where a rank was killed, so the ranks that stay are counted by what they
 * print: 2 of 3 must report REMOTE or TIMEOUT. */
ParameterizedTestParameters(mpi, gone)
{
    static struct row rows[] = {
        {3, "gone", "killed-forward"},
        {3, "gone", "killed-backward"},
        {3, "gone", "absent-forward"},
        {3, "gone", "absent-backward"},
        {3, "gone", "absent-plan"},
        {3, "gone", "killed-plan"},
        {3, "killed", ""}, /* between GPUs */
    };
    return cr_make_param_array(struct row, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct row *r, mpi, gone, .timeout = 100)
{
    const char *program = getenv(strcmp(r->test, "gone") == 0 ? "HRA_WORKER" : "HRA_PEER_WORKER");
    char command[2048];

    if (program == NULL)
        cr_skip_test("the headers of CUDA are not here");
    snprintf(command, sizeof(command), "timeout -k 5 60 %s --enable-recovery -n %d %s %s %s 2>&1",
             getenv("HRA_MPIEXEC"), r->ranks, program, r->test, r->argument);
    FILE *output = popen(command, "r");
    cr_assert(ne(ptr, output, NULL));
    char line[1024];
    int reported = 0, wrong = 0;
    while (fgets(line, sizeof(line), output) != NULL) {
        fputs(line, stderr);
        reported +=
            strstr(line, "HRA_ERR_REMOTE after") != NULL || strstr(line, "HRA_ERR_TIMEOUT after") != NULL;
        wrong += strstr(line, ", line ") != NULL;
    }
    pclose(output);
    cr_expect(eq(int, reported, r->ranks - 1), "%s", r->argument);
    cr_expect(eq(int, wrong, 0), "%s", r->argument);
}

/* Whole random problems, in both arithmetics and every type, through hra-check. */
ParameterizedTestParameters(mpi, random_problems)
{
    static struct row rows[] = {
        {1, "--seed 11", "--random 200"}, {2, "--seed 12", "--random 200"}, {3, "--seed 13", "--random 200"},
        {4, "--seed 14", "--random 200"}, {5, "--seed 15", "--random 200"}, {8, "--seed 16", "--random 200"},
    };
    return cr_make_param_array(struct row, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct row *r, mpi, random_problems, .timeout = 300)
{
    cr_expect(eq(int, run_ranks(r->ranks, getenv("HRA_CHECK"), r->test, r->argument, 280), 0), "%d ranks, %s",
              r->ranks, r->test);
}
