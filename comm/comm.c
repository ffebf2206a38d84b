/* comm.c - the communicator: agreement between ranks, failures, and the arena. */
#include "comm/transport.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_TIMEOUT_S = 600 };

hra_status hra_comm_create(hra_comm **out, const struct hra_transport *transport, void *state, int rank,
                           int ranks, size_t message_bytes)
{
    hra_comm *comm = NULL;
    HRA_TRY(hra_alloc((void **)&comm, 1, sizeof(*comm), "communicator"));
    *comm = (hra_comm){.transport = transport,
                       .state = state,
                       .rank = rank,
                       .ranks = ranks,
                       .local_ranks = 1,
                       .message_bytes = message_bytes};
    if (transport->allgather != NULL) {
        hra_status status = hra_alloc((void **)&comm->word, ranks, sizeof(*comm->word), "communicator");
        if (status != HRA_OK) {
            free(comm);
            return status;
        }
    }
    *out = comm;
    return HRA_OK;
}

struct hra_limits hra_comm_limits(const hra_comm_options *options)
{
    const double run_s = options->timeout_s == 0 ? DEFAULT_TIMEOUT_S : options->timeout_s;

    return (struct hra_limits){run_s, options->setup_timeout_s == 0 ? run_s : options->setup_timeout_s};
}

int hra_comm_rank(const hra_comm *comm)
{
    return comm == NULL ? -1 : comm->rank;
}

int hra_comm_ranks(const hra_comm *comm)
{
    return comm == NULL ? 0 : comm->ranks;
}

hra_status hra_comm_get_status(const hra_comm *comm)
{
    return comm == NULL ? HRA_FAIL(HRA_ERR_ARG, "hra_comm_get_status: comm is NULL") : hra_comm_check(comm);
}

hra_status hra_comm_wait(hra_comm *comm, void *stream)
{
    if (comm == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_wait: comm is NULL");
    HRA_TRY(hra_comm_check(comm));
    return comm->transport->wait == NULL ? HRA_OK : comm->transport->wait(comm->state, stream);
}

#ifndef HRA_CUDA
static const char without[] = "this library was built without CUDA";

hra_status hra_comm_get_unique_id(void *out)
{
    (void)out;
    return HRA_FAIL(HRA_ERR_UNSUPPORTED, "hra_comm_get_unique_id: %s", without);
}

hra_status hra_comm_create_unique(hra_comm **out, int rank, int ranks, const void *id,
                                  const hra_comm_options *options)
{
    (void)out, (void)rank, (void)ranks, (void)id, (void)options;
    return HRA_FAIL(HRA_ERR_UNSUPPORTED, "hra_comm_create_unique: %s", without);
}

hra_status hra_gpu_create(hra_comm **out, const struct hra_gpu_setup *setup)
{
    (void)out;
    return HRA_FAIL(HRA_ERR_UNSUPPORTED, "options.transport is %d: %s", (int)setup->options.transport,
                    without);
}
#endif

hra_status hra_comm_check(const hra_comm *comm)
{
    if (comm->failed == HRA_OK)
        return comm->transport->status == NULL ? HRA_OK : comm->transport->status(comm->state);
    return HRA_FAIL(comm->failed, "the communicator failed earlier: %s", comm->failure);
}

hra_status hra_comm_note(hra_comm *comm, hra_status status)
{
    if (comm->failed == HRA_OK &&
        (status == HRA_ERR_COMM || status == HRA_ERR_REMOTE || status == HRA_ERR_TIMEOUT)) {
        comm->failed = status;
        snprintf(comm->failure, sizeof(comm->failure), "%s", hra_last_error());
    }
    return status;
}

hra_status hra_comm_allgather(hra_comm *comm, void *all, const void *mine, size_t bytes)
{
    return hra_comm_note(comm, comm->transport->allgather(comm->state, all, mine, bytes));
}

hra_status hra_comm_agree(hra_comm *comm, hra_status mine)
{
    struct hra_word own = {.status = mine};

    if (comm->transport->allgather == NULL)
        return mine;
    if (mine != HRA_OK)
        snprintf(own.message, sizeof(own.message), "%s", hra_last_error());
    const hra_status failed = hra_comm_check(comm);
    if (failed != HRA_OK) /* nobody would come */
        return mine != HRA_OK ? HRA_FAIL(mine, "%s", own.message) : failed;
    HRA_TRY(hra_comm_allgather(comm, comm->word, &own, sizeof(own)));
    for (int r = 0; r < comm->ranks; r++) {
        const struct hra_word *word = &comm->word[r];
        if (word->status == HRA_OK)
            continue;
        return r == comm->rank ? HRA_FAIL(mine, "%s", own.message)
                               : HRA_FAIL((hra_status)word->status, "rank %d: %s", r, word->message);
    }
    return HRA_OK;
}

hra_status hra_arena_join(struct hra_arena **out, hra_comm *comm, size_t bytes, size_t reserve)
{
    struct hra_arena *arena = comm->arena;

    if (bytes == 0) {
        *out = NULL;
        return HRA_OK;
    }
    if (arena == NULL || arena->bytes < bytes) {
        const size_t size = reserve > bytes ? reserve : bytes;
        struct hra_arena *larger = NULL;

        HRA_TRY(hra_alloc((void **)&larger, 1, sizeof(*larger), "arena"));
        hra_status status = comm->transport->alloc(comm->state, &larger->base, size);
        if (status != HRA_OK) {
            free(larger);
            return status;
        }
        larger->bytes = size;
        comm->arena = larger;
        if (arena != NULL && arena->plans == 0)
            hra_arena_leave(comm, arena);
        arena = larger;
    }
    arena->plans++;
    *out = arena;
    return HRA_OK;
}

void hra_arena_leave(hra_comm *comm, struct hra_arena *arena)
{
    if (arena == NULL)
        return;
    if (arena->plans > 0)
        arena->plans--;
    if (arena->plans == 0 && arena != comm->arena) {
        if (arena->drop_mirror != NULL)
            arena->drop_mirror(arena);
        if (hra_comm_check(comm) == HRA_OK) /* else a peer may still write there: it stays allocated */
            comm->transport->release(comm->state, arena->base);
        free(arena);
    }
}

hra_status hra_comm_destroy(hra_comm *comm)
{
    if (comm == NULL)
        return HRA_OK;
    if (comm->plans > 0)
        return HRA_FAIL(HRA_ERR_STATE, "the communicator cannot be destroyed while %d of its plans live",
                        comm->plans);
    struct hra_arena *arena = comm->arena;
    comm->arena = NULL;
    hra_arena_leave(comm, arena);
    const int failed = hra_comm_check(comm) != HRA_OK;
    hra_status status = comm->transport->close(comm->state, failed);
    free(comm->word);
    free(comm);
    return status;
}
