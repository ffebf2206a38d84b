/* abi.c - what programs that were compiled against an earlier libhra of the same soname count on. A change that does not
 * compile here is one that needs another soname (docs/versions.md). Then that this library is the header's version and
 * takes structs of other sizes. Needs no MPI. */
#include <hra/hra.h>
#include <stdio.h>
#include <string.h>

/* Constants keep their numbers; new ones come behind. */
_Static_assert(HRA_OK == 0 && HRA_ERR_ARG == 1 && HRA_ERR_MISMATCH == 2 && HRA_ERR_UNSUPPORTED == 3, "");
_Static_assert(HRA_ERR_MEMORY == 4 && HRA_ERR_CUDA == 5 && HRA_ERR_COMM == 6 && HRA_ERR_REMOTE == 7, "");
_Static_assert(HRA_ERR_TIMEOUT == 8 && HRA_ERR_STATE == 9, "");
_Static_assert(HRA_F64 == 1 && HRA_F32 == 2 && HRA_BF16 == 3 && HRA_F16 == 4, "");
_Static_assert(HRA_DILATED_KEYS == 0 && HRA_DILATED_BOTH == 1 && HRA_DILATED_RESIDUE == 2, "");
_Static_assert(HRA_TRANSPORT_AUTO == 0 && HRA_TRANSPORT_MPI == 1 && HRA_TRANSPORT_GPU == 2, "");
_Static_assert(HRA_TRANSPORT_NCCL == 3 && HRA_TRANSPORT_PEER == 4, "");
_Static_assert(HRA_SHARD_AUTO == 0 && HRA_SHARD_CONTIGUOUS == 1 && HRA_SHARD_ZIGZAG == 2, "");
_Static_assert(HRA_SHARD_BALANCED == 3 && HRA_SCHEDULE_AUTO == 0 && HRA_SCHEDULE_RING == 1, "");
_Static_assert(HRA_SCHEDULE_HALO == 2 && HRA_SCHEDULE_HEADS == 3, "");
_Static_assert(HRA_BACKEND_AUTO == 0 && HRA_BACKEND_CPU == 1 && HRA_BACKEND_CUDA == 2 &&
                   HRA_BACKEND_SM90 == 3 && HRA_BACKEND_GPU == 4,
               "");
_Static_assert(HRA_BACKWARD_AUTO == 0 && HRA_BACKWARD_FUSED == 1 && HRA_BACKWARD_CUBLAS == 2, "");
_Static_assert(HRA_SAVED_NOTHING == 0 && HRA_SAVED_QKV == 1 && HRA_FORWARD == 0 && HRA_BACKWARD == 1, "");
_Static_assert(HRA_GATHER == 0 && HRA_SCATTER == 1 && HRA_OFFSET_HEAD == -1 && HRA_TILE == 128, "");
_Static_assert(HRA_SPAN_COMPUTE == 0 && HRA_SPAN_OTHER == 1 && HRA_SPAN_WAIT == 2, "");
_Static_assert(HRA_SPAN_SEND == 3 && HRA_SPAN_RECEIVE == 4, "");
_Static_assert(HRA_UNIQUE_ID_BYTES == 128 && HRA_UNBOUNDED == INT64_MAX, "");

/* Structs without a size keep theirs. */
_Static_assert(sizeof(hra_tensor) == 32 && offsetof(hra_tensor, stride_head) == 24, "");
_Static_assert(sizeof(hra_piece) == 32 && offsetof(hra_piece, rank) == 24, "");
_Static_assert(sizeof(hra_plan_tile) == 40 && offsetof(hra_plan_tile, bitmap) == 36, "");
_Static_assert(sizeof(hra_plan_move) == 32 && offsetof(hra_plan_move, bytes) == 24, "");
_Static_assert(sizeof(hra_plan_run) == 48 && offsetof(hra_plan_run, head1) == 44, "");
_Static_assert(sizeof(hra_link) == 32 && offsetof(hra_link, grouped) == 28, "");
_Static_assert(sizeof(hra_span) == 40 && offsetof(hra_span, bytes) == 32, "");

/* Structs with a size grow at the end. */
_Static_assert(offsetof(hra_domain, size) == 0 && offsetof(hra_domain, grid) == 24, "");
_Static_assert(offsetof(hra_order_info, size) == 0 && offsetof(hra_order_info, curve) == 64, "");
_Static_assert(offsetof(hra_comm_options, size) == 0 && offsetof(hra_comm_options, transport) == 24, "");
_Static_assert(offsetof(hra_comm_options, setup_timeout_s) == 32, "");
_Static_assert(offsetof(hra_problem, size) == 0 && offsetof(hra_problem, tokens) == 32, "");
_Static_assert(offsetof(hra_problem, type) == 48 && offsetof(hra_problem, threads) == 88, "");
_Static_assert(offsetof(hra_options, size) == 0 && offsetof(hra_options, saved) == 24, "");
_Static_assert(offsetof(hra_options, machine) == 32, "");
_Static_assert(offsetof(hra_plan_info, size) == 0 && offsetof(hra_plan_info, balance) == 144, "");
_Static_assert(offsetof(hra_plan_info, backward) == 200, "");
_Static_assert(offsetof(hra_machine, size) == 0 && offsetof(hra_machine, own_straight) == 144, "");
_Static_assert(offsetof(hra_forecast_info, size) == 0 && offsetof(hra_forecast_info, messages) == 120, "");

static int failures;

static void expect(int so, const char *what)
{
    if (so)
        return;
    fprintf(stderr, "not so: %s; last error: %s\n", what, hra_last_error());
    failures++;
}

/* A plan of 100 tokens on one rank; the sizes of its structs are the caller's. */
static hra_status make(hra_plan **out, hra_comm *comm, const hra_mask *mask, const void *options)
{
    hra_problem problem = HRA_PROBLEM_INIT;
    problem.heads = 1;
    problem.dim = 8;
    problem.tokens = 100;
    problem.type = HRA_F32;
    problem.threads = 1;
    return hra_plan_create(out, comm, &problem, NULL, mask, options);
}

int main(void)
{
    const hra_domain domain = {sizeof(domain), 0, 0, 100, {0, 0, 0}};
    /* Options of a later version, with 16 bytes more, and of an earlier one, which ended before backend. */
    struct {
        hra_options known;
        int64_t added[2];
    } later = {HRA_OPTIONS_INIT, {0, 0}};
    hra_options earlier = HRA_OPTIONS_INIT;
    /* The info of an earlier version, which ended behind pairs_live: what is behind it belongs to others. */
    union {
        hra_plan_info info;
        unsigned char byte[sizeof(hra_plan_info)];
    } less;
    hra_comm *comm = NULL;
    hra_mask *mask = NULL;
    hra_plan *plan = NULL;

    printf("header %s, library %s\n", HRA_VERSION, hra_version());
    expect(strcmp(HRA_VERSION, hra_version()) == 0, "the header and the library are of one version");
    expect(hra_comm_create_self(&comm) == HRA_OK, "a communicator");
    expect(hra_mask_parse(&mask, &domain, NULL, "causal") == HRA_OK, "a mask");

    later.known.size = sizeof(later);
    expect(make(&plan, comm, mask, &later) == HRA_OK, "fields of a later version count as 0");
    hra_plan_destroy(plan);
    later.added[1] = 1;
    plan = NULL;
    expect(make(&plan, comm, mask, &later) == HRA_ERR_UNSUPPORTED && plan == NULL, "or are named");
    expect(strstr(hra_last_error(), "options has a field at byte ") == hra_last_error(), "by their place");

    earlier.size = offsetof(hra_options, backend);
    earlier.backend = (hra_backend_kind)99;
    expect(make(&plan, comm, mask, &earlier) == HRA_OK, "what an earlier version lacks is not read");

    memset(less.byte, 0xa5, sizeof(less.byte));
    less.info.size = offsetof(hra_plan_info, pairs_counted);
    expect(hra_plan_get_info(plan, &less.info) == HRA_OK && less.info.pairs_live == 5050, "an earlier info");
    expect(less.byte[offsetof(hra_plan_info, pairs_counted)] == 0xa5, "nothing is written behind it");
    expect(less.info.size == offsetof(hra_plan_info, pairs_counted), "and its size stays");

    hra_plan_destroy(plan);
    hra_mask_destroy(mask);
    expect(hra_comm_destroy(comm) == HRA_OK, "the end");
    puts(failures == 0 ? "ok" : "FAILED");
    return failures != 0;
}
