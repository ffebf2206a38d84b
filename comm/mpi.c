/* mpi.c - the transport over MPI, for host memory. The only file that includes mpi.h.
 *
 * Every wait polls with the communicator's time limit, so a rank that never comes is an error and not a hang; what
 * MPI offers only as a blocking call (MPI_Comm_dup, MPI_Barrier, MPI_Allgather) is used in its non-blocking form. A
 * transfer travels in messages of at most message_bytes, since MPI counts bytes in an int. */
#include "comm/transport.h"

#include <hra/mpi.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TAG = 1 };

struct mpi_state {
    MPI_Comm comm; /* our duplicate */
    int rank, ranks;
    struct hra_limits limit;
    size_t message_bytes;
    MPI_Request *request; /* [capacity]; those of transfers under way lie in 0 .. used - 1 */
    int used, capacity;
    int open; /* transfers begun and not finished; at 0 used returns to 0 */
};

static hra_status fail_mpi(int code, const char *call)
{
    char text[MPI_MAX_ERROR_STRING] = "?";
    int length;

    MPI_Error_string(code, text, &length);
    return HRA_FAIL(HRA_ERR_COMM, "%s: %s", call, text);
}

#define TRY_MPI(call)                                                                                        \
    do {                                                                                                     \
        int try_ = (call);                                                                                   \
        if (try_ != MPI_SUCCESS)                                                                             \
            return fail_mpi(try_, #call);                                                                    \
    } while (0)

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Wait for all of `count` requests within the limit. Looks often at first, then rests longer and longer between
 * looks, up to 0.1 ms: ranks that share cores would otherwise keep each other from computing. *done is 0 where time
 * ran out. */
static int wait_all(MPI_Request *request, int count, double timeout_s, int *done)
{
    const double begin = now_s();
    long rest_ns = 0;

    for (*done = 0;;) {
        const int code = MPI_Testall(count, request, done, MPI_STATUSES_IGNORE);
        if (code != MPI_SUCCESS || *done)
            return code;
        if (timeout_s >= 0 && now_s() - begin > timeout_s)
            return MPI_SUCCESS;
        if (rest_ns > 0)
            nanosleep(&(struct timespec){0, rest_ns}, NULL);
        rest_ns = rest_ns < 1000 ? rest_ns + 50 : rest_ns < 100000 ? rest_ns + rest_ns / 4 : 100000;
    }
}

/* Wait for a collective call. */
static hra_status wait_collective(const struct mpi_state *m, MPI_Request *request, const char *what)
{
    int done;

    TRY_MPI(wait_all(request, 1, m->limit.setup_s, &done));
    if (!done)
        return HRA_FAIL(HRA_ERR_TIMEOUT, "%s: rank %d waited %.1f s for the other ranks", what, m->rank,
                        m->limit.setup_s);
    return HRA_OK;
}

static hra_status mpi_allgather(void *state, void *all, const void *mine, size_t bytes)
{
    struct mpi_state *m = state;

    MPI_Request request;

    if (bytes > (size_t)INT_MAX / (size_t)m->ranks)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "mpi: %zu bytes from each of %d ranks are too many to gather",
                        bytes, m->ranks);
    TRY_MPI(MPI_Iallgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, m->comm, &request));
    return wait_collective(m, &request, "agreement of the ranks");
}

/* Room for the messages of a pass. */
static hra_status mpi_enlist(void *state, struct hra_transfer *transfer, int count)
{
    struct mpi_state *m = state;
    MPI_Request *larger = NULL;
    int64_t requests = 0;

    for (int i = 0; i < count; i++)
        requests += (int64_t)((transfer[i].bytes - 1) / m->message_bytes) + 1;
    if (requests <= m->capacity)
        return HRA_OK;
    if (requests > INT_MAX)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "mpi: %lld messages in one pass", (long long)requests);
    larger = realloc(m->request, (size_t)requests * sizeof(*larger));
    if (larger == NULL)
        return HRA_FAIL(HRA_ERR_MEMORY, "mpi: no memory for %lld requests", (long long)requests);
    m->request = larger;
    m->capacity = (int)requests;
    return HRA_OK;
}

/* What went wrong with a transfer, as a status and a sentence. An error that MPI reports of a message is taken for the
 * peer's: our own end was in order when we started it. */
static hra_status fail_transfer(const struct mpi_state *m, const struct hra_transfer *t, int code)
{
    char text[MPI_MAX_ERROR_STRING] = "?";
    int length;

    if (code == MPI_SUCCESS)
        return HRA_FAIL(HRA_ERR_TIMEOUT, "%s, round %d: rank %d waited %.1f s for rank %d to %s %zu bytes",
                        t->what, t->round, m->rank, m->limit.run_s, t->peer, t->sends ? "take" : "send",
                        t->bytes);
    MPI_Error_string(code, text, &length);
    return HRA_FAIL(HRA_ERR_REMOTE, "%s, round %d: rank %d could not %s rank %d: %s", t->what, t->round,
                    m->rank, t->sends ? "send to" : "receive from", t->peer, text);
}

static hra_status start_one(struct mpi_state *m, struct hra_transfer *t)
{
    t->first = m->used;
    t->count = 0;
    for (size_t at = 0; at < t->bytes; at += m->message_bytes) {
        const size_t rest = t->bytes - at;
        const int bytes = (int)(rest < m->message_bytes ? rest : m->message_bytes);
        char *data = (char *)t->data + at;
        MPI_Request *request = &m->request[m->used];
        const int code = t->sends ? MPI_Isend(data, bytes, MPI_BYTE, t->peer, TAG, m->comm, request)
                                  : MPI_Irecv(data, bytes, MPI_BYTE, t->peer, TAG, m->comm, request);
        if (code != MPI_SUCCESS)
            return fail_transfer(m, t, code);
        m->used++;
        t->count++;
    }
    m->open++;
    return HRA_OK;
}

/* A receive that is posted before its message comes may save MPI a copy, or its sender a wait. */
static hra_status mpi_post(void *state, struct hra_transfer *const *transfer, int count, int after,
                           void *stream)
{
    struct mpi_state *m = state;

    (void)stream;
    for (int i = count; i < count + after; i++) {
        int done = 0;
        const int code =
            MPI_Testall(transfer[i]->count, m->request + transfer[i]->first, &done, MPI_STATUSES_IGNORE);
        if (code != MPI_SUCCESS)
            return fail_transfer(m, transfer[i], code);
        if (!done)
            return HRA_OK; /* they are received when they are started */
    }
    for (int i = 0; i < count; i++)
        HRA_TRY(start_one(m, transfer[i]));
    return HRA_OK;
}

static hra_status mpi_start(void *state, struct hra_transfer *const *transfer, int count, void *stream)
{
    (void)stream;
    for (int i = 0; i < count; i++)
        if (transfer[i]->count == 0)
            HRA_TRY(start_one(state, transfer[i]));
    return HRA_OK;
}

static hra_status mpi_finish(void *state, struct hra_transfer *t, void *stream)
{
    struct mpi_state *m = state;
    int done;

    (void)stream;
    const int code = wait_all(m->request + t->first, t->count, m->limit.run_s, &done);
    if (code != MPI_SUCCESS || !done)
        return fail_transfer(m, t, code);
    t->count = 0;
    if (--m->open == 0)
        m->used = 0;
    return HRA_OK;
}

/* MPI moves messages on only while it is called. Errors show when the transfer is finished. */
static void mpi_poll(void *state)
{
    struct mpi_state *m = state;
    int flag;

    if (m->open > 0)
        MPI_Iprobe(MPI_ANY_SOURCE, TAG, m->comm, &flag, MPI_STATUS_IGNORE);
}

static hra_status mpi_alloc(void *state, void **out, size_t bytes)
{
    const size_t line = 256;

    (void)state;
    *out = aligned_alloc(line, (bytes + line - 1) / line * line);
    if (*out == NULL)
        return HRA_FAIL(HRA_ERR_MEMORY, "mpi: no memory for an arena of %zu bytes", bytes);
    return HRA_OK;
}

static void mpi_release(void *state, void *memory)
{
    (void)state;
    free(memory);
}

static hra_status mpi_copy(void *state, void *to, const void *from, size_t bytes)
{
    (void)state;
    memcpy(to, from, bytes);
    return HRA_OK;
}

static hra_status mpi_close(void *state, int failed)
{
    struct mpi_state *m = state;
    hra_status status = HRA_OK;

    const int alone = failed || m->comm == MPI_COMM_NULL; /* the latter where it was never made */
    if (!alone) {
        MPI_Request request;
        const int code = MPI_Ibarrier(m->comm, &request);
        status = code != MPI_SUCCESS ? fail_mpi(code, "MPI_Ibarrier")
                                     : wait_collective(m, &request, "hra_comm_destroy");
    }
    /* Freeing an MPI communicator is collective: where ranks are missing it stays, with what is pending on it. */
    if (!alone && status == HRA_OK)
        MPI_Comm_free(&m->comm);
    free(m->request);
    free(m);
    return status;
}

static const struct hra_transport mpi_transport = {
    .name = "mpi",
    .host_only = 1,
    .allgather = mpi_allgather,
    .enlist = mpi_enlist,
    .start = mpi_start,
    .post = mpi_post,
    .finish = mpi_finish,
    .poll = mpi_poll,
    .alloc = mpi_alloc,
    .release = mpi_release,
    .copy = mpi_copy,
    .close = mpi_close,
};

/* What ranks tell each other when a communicator is made. */
struct greeting {
    uint64_t message_bytes;
    int transport;
    char node[MPI_MAX_PROCESSOR_NAME];
};

/* Every rank leaves with the same status, the largest, before any of them waits for the others elsewhere. `parent` is
 * the caller's: we have none of our own yet. */
static hra_status agree(MPI_Comm parent, const hra_comm_options *options, hra_status mine)
{
    struct mpi_state caller = {.limit = hra_comm_limits(options)};
    const int own = mine;
    MPI_Request request;
    int worst = mine;

    MPI_Comm_rank(parent, &caller.rank);
    TRY_MPI(MPI_Iallreduce(&own, &worst, 1, MPI_INT, MPI_MAX, parent, &request));
    HRA_TRY(wait_collective(&caller, &request, "hra_comm_create_mpi"));
    if (mine == HRA_OK && worst != HRA_OK)
        return HRA_FAIL((hra_status)worst, "hra_comm_create_mpi: another rank failed with %s",
                        hra_status_name((hra_status)worst));
    return (hra_status)worst;
}

/* Duplicate the caller's communicator, count the ranks of this node, and see that all want the same. */
static hra_status meet(struct mpi_state *m, MPI_Comm parent, struct greeting *all,
                       hra_transport_kind transport, int *local_ranks)
{
    struct greeting mine = {.message_bytes = m->message_bytes, .transport = (int)transport};
    MPI_Request request;
    int length;

    TRY_MPI(MPI_Comm_idup(parent, &m->comm, &request));
    HRA_TRY(wait_collective(m, &request, "hra_comm_create_mpi"));
    TRY_MPI(MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN));
    TRY_MPI(MPI_Get_processor_name(mine.node, &length));
    HRA_TRY(mpi_allgather(m, all, &mine, sizeof(mine)));
    *local_ranks = 0;
    for (int r = 0; r < m->ranks; r++) {
        *local_ranks += strcmp(all[r].node, mine.node) == 0;
        if (all[r].message_bytes != all[0].message_bytes)
            return HRA_FAIL(HRA_ERR_MISMATCH, "options.message_bytes is %llu on rank %d and %llu on rank 0",
                            (unsigned long long)all[r].message_bytes, r,
                            (unsigned long long)all[0].message_bytes);
        if (all[r].transport != all[0].transport)
            return HRA_FAIL(HRA_ERR_MISMATCH, "options.transport is %d on rank %d and %d on rank 0",
                            all[r].transport, r, all[0].transport);
    }
    return HRA_OK;
}

/* What cannot even be told to other ranks. */
static hra_status check_parent(hra_comm **out, MPI_Comm parent)
{
    int initialized = 0, finalized = 0, between = 0;

    if (out == NULL || parent == MPI_COMM_NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_create_mpi: %s",
                        out == NULL ? "out is NULL" : "parent is MPI_COMM_NULL");
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    if (!initialized || finalized)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_create_mpi: MPI is %s",
                        finalized ? "already finalised" : "not initialised");
    TRY_MPI(MPI_Comm_test_inter(parent, &between));
    if (between)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_create_mpi: parent is an intercommunicator");
    return HRA_OK;
}

/* Everything that this rank does alone: read the options, allocate. On success *out owns a state without an MPI
 * communicator yet. */
static hra_status prepare(hra_comm **out, struct greeting **all, MPI_Comm parent,
                          const hra_comm_options *options, hra_comm_options *read)
{
    hra_comm_options o;

    HRA_TRY(hra_copy_sized(&o, sizeof(o), options, "options"));
    if (o.transport == HRA_TRANSPORT_AUTO)
        o.transport = HRA_TRANSPORT_MPI;
    *read = o;
    if (o.transport < HRA_TRANSPORT_AUTO || o.transport > HRA_TRANSPORT_PEER)
        return HRA_FAIL(HRA_ERR_ARG, "options.transport is %d, which is no hra_transport_kind",
                        (int)o.transport);
    if (o.message_bytes > INT_MAX)
        return HRA_FAIL(HRA_ERR_ARG, "options.message_bytes is %zu; it must be at most %d", o.message_bytes,
                        INT_MAX);
    struct mpi_state *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return HRA_FAIL(HRA_ERR_MEMORY, "hra_comm_create_mpi: no memory");
    m->limit = hra_comm_limits(&o);
    m->message_bytes = o.message_bytes == 0 ? (size_t)1 << 30 : o.message_bytes;
    m->comm = MPI_COMM_NULL;
    MPI_Comm_rank(parent, &m->rank);
    MPI_Comm_size(parent, &m->ranks);
    *all = calloc((size_t)m->ranks, sizeof(**all));
    hra_status status =
        *all == NULL ? HRA_FAIL(HRA_ERR_MEMORY, "hra_comm_create_mpi: no memory for %d ranks", m->ranks)
                     : hra_comm_create(out, &mpi_transport, m, m->rank, m->ranks, m->message_bytes);
    if (status != HRA_OK)
        free(m);
    return status;
}

hra_status hra_comm_create_mpi(hra_comm **out, MPI_Comm parent, const hra_comm_options *options)
{
    struct greeting *all = NULL;
    hra_comm *comm = NULL;
    hra_comm_options o = HRA_COMM_OPTIONS_INIT; /* as long as they have not been read */

    HRA_TRY(check_parent(out, parent));
    hra_status status = prepare(&comm, &all, parent, options, &o);
    status = agree(parent, &o, status);
    if (status == HRA_OK)
        status = hra_comm_note(comm, meet(comm->state, parent, all, o.transport, &comm->local_ranks));
    free(all);
    if (status != HRA_OK) {
        hra_comm_destroy(comm);
        return status;
    }
    if (o.transport != HRA_TRANSPORT_MPI) {
        const struct hra_gpu_setup setup = {
            .rank = comm->rank, .ranks = comm->ranks, .options = o, .below = comm};
        status = hra_gpu_create(out, &setup);
        if (status != HRA_OK)
            hra_comm_destroy(comm);
        return status;
    }
    hra_log(HRA_LOG_INFO, "communicator over mpi, rank %d of %d, %d on this node", comm->rank, comm->ranks,
            comm->local_ranks);
    *out = comm;
    return HRA_OK;
}
