/* self.c - the transports without messages: one rank, and the model of many. */
#include "comm/transport.h"

#include <stdlib.h>
#include <string.h>

static hra_status self_allgather(void *state, void *all, const void *mine, size_t bytes)
{
    (void)state;
    memcpy(all, mine, bytes);
    return HRA_OK;
}

static hra_status self_start(void *state, struct hra_transfer *const *transfer, int count, void *stream)
{
    (void)state;
    (void)stream;
    if (count > 0)
        return HRA_FAIL(HRA_ERR_COMM, "self: %s, round %d: a message to rank %d, but there is one rank",
                        transfer[0]->what, transfer[0]->round, transfer[0]->peer);
    return HRA_OK;
}

static hra_status self_finish(void *state, struct hra_transfer *transfer, void *stream)
{
    return self_start(state, &transfer, 1, stream);
}

static hra_status self_alloc(void *state, void **out, size_t bytes)
{
    (void)state;
    return hra_alloc(out, (int64_t)bytes, 1, "arena");
}

static void self_release(void *state, void *memory)
{
    (void)state;
    free(memory);
}

static hra_status self_close(void *state, int failed)
{
    (void)state;
    (void)failed;
    return HRA_OK;
}

static const struct hra_transport self_transport = {
    .name = "self",
    .allgather = self_allgather,
    .start = self_start,
    .finish = self_finish,
#ifdef HRA_CUDA
    .wait = hra_gpu_synchronize,
#endif
    .alloc = self_alloc,
    .release = self_release,
    .close = self_close,
};

/* Nothing but a name: hra_plan_create computes what the ranks would say and needs no memory for blocks, and
 * hra_forward refuses. */
static const struct hra_transport model_transport = {.name = "model", .close = self_close};

hra_status hra_comm_create_self(hra_comm **out)
{
    if (out == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_create_self: out is NULL");
    return hra_comm_create(out, &self_transport, NULL, 0, 1, SIZE_MAX);
}

hra_status hra_comm_create_model(hra_comm **out, int rank, int ranks)
{
    if (out == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_create_model: out is NULL");
    if (ranks < 1 || rank < 0 || rank >= ranks)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_create_model: rank %d of %d", rank, ranks);
    return hra_comm_create(out, &model_transport, NULL, rank, ranks, SIZE_MAX);
}
