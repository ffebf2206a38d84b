/* hops.c - transfers alone, from each rank to the next, for measuring what a transport does.
 *
 * Three buffers: a hop sends what one holds into the next one of the next rank. Before the next hop both its transfers are
 * finished on the stream, since it sends what has arrived; the buffer that it receives in is the third, which was sent a
 * hop before, and so can be posted a hop ahead, as the receiver of what we send does. So do the hops of a ring. */
#include "comm/transport.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct hra_hops {
    hra_comm *comm;
    size_t bytes, stride; /* of a hop; from one buffer to the other */
    int count;
    int64_t done;                  /* hops so far */
    char *base;                    /* the buffers: the transport's memory */
    void **there;                  /* [ranks] those of others */
    struct hra_transfer *transfer; /* [count][2]: receipt, send */
    int enlisted;
    char what[32];
};

enum {
    BUFFERS = 3,
    PIECE = 1 << 20 /* bytes that are filled or compared at once */
};

/* The byte at `at` of what rank `rank` sends first. */
static unsigned char stamp(int rank, size_t at)
{
    return (unsigned char)((size_t)rank * 37 + at % 251);
}

/* The whole of buffer `which`, piece by piece: written with our stamp, or compared with that of `from`. */
static hra_status pass_over(struct hra_hops *h, int which, int from, int compare)
{
    const struct hra_comm *comm = h->comm;
    unsigned char *piece = NULL;
    hra_status status = hra_alloc_unset((void **)&piece, PIECE, 1, "hops");

    for (size_t at = 0; status == HRA_OK && at < h->bytes; at += PIECE) {
        const size_t bytes = h->bytes - at < PIECE ? h->bytes - at : PIECE;
        char *there = h->base + (size_t)which * h->stride + at;

        if (compare)
            status = comm->transport->copy(comm->state, piece, there, bytes);
        for (size_t i = 0; !compare && i < bytes; i++)
            piece[i] = stamp(from, at + i);
        if (!compare)
            status = comm->transport->copy(comm->state, there, piece, bytes);
        for (size_t i = 0; status == HRA_OK && compare && i < bytes; i++)
            if (piece[i] != stamp(from, at + i))
                status =
                    HRA_FAIL(HRA_ERR_COMM, "hops: byte %zu on rank %d is %d after %lld hops; rank %d sent %d",
                             at + i, comm->rank, piece[i], (long long)h->done, from, stamp(from, at + i));
    }
    free(piece);
    return status;
}

/* Memory, and the transfers of `count` hops. Local. */
static hra_status prepare(struct hra_hops *h)
{
    hra_comm *comm = h->comm;

    snprintf(h->what, sizeof(h->what), "hops %d", comm->made);
    h->stride = (h->bytes + 255) / 256 * 256;
    HRA_TRY(hra_alloc((void **)&h->there, comm->ranks, sizeof(*h->there), "hops"));
    HRA_TRY(hra_alloc((void **)&h->transfer, 2 * (int64_t)h->count, sizeof(*h->transfer), "hops"));
    HRA_TRY(comm->transport->alloc(comm->state, (void **)&h->base, BUFFERS * h->stride));
    HRA_TRY(pass_over(h, 0, comm->rank, 0));
    for (int i = 0; i < 2 * h->count; i++) {
        const int sends = i % 2, peer = (comm->rank + (sends ? 1 : comm->ranks - 1)) % comm->ranks;
        const int64_t name[] = {comm->made, i / 2, sends ? comm->rank : peer, sends ? peer : comm->rank};
        h->transfer[i] =
            (struct hra_transfer){.bytes = h->bytes,
                                  .peer = peer,
                                  .sends = sends,
                                  .what = h->what,
                                  .round = i / 2,
                                  .ahead = !sends && i / 2 > 0 && comm->transport->post != NULL,
                                  .number = i / 2,
                                  .tag = (uint32_t)hra_hash(HRA_HASH_BEGIN, name, sizeof(name)) | 1};
    }
    if (comm->transport->enlist != NULL)
        HRA_TRY(comm->transport->enlist(comm->state, h->transfer, 2 * h->count));
    h->enlisted = 1;
    return HRA_OK;
}

/* See that the ranks want the same. Collective. */
static hra_status check_alike(const struct hra_hops *h)
{
    const int64_t mine[2] = {(int64_t)h->bytes, h->count};
    int64_t(*all)[2] = NULL;

    hra_status status =
        hra_comm_agree(h->comm, hra_alloc((void **)&all, h->comm->ranks, sizeof(*all), "hops"));
    if (status == HRA_OK)
        status = hra_comm_allgather(h->comm, all, mine, sizeof(mine));
    for (int r = 0; status == HRA_OK && r < h->comm->ranks; r++)
        if (memcmp(all[r], all[0], sizeof(all[0])) != 0)
            status = HRA_FAIL(
                HRA_ERR_MISMATCH, "hra_hops_create: %lld bytes, %lld hops on rank %d; %lld, %lld on rank 0",
                (long long)all[r][0], (long long)all[r][1], r, (long long)all[0][0], (long long)all[0][1]);
    free(all);
    return status;
}

static hra_status build(struct hra_hops *h)
{
    hra_comm *comm = h->comm;

    HRA_TRY(check_alike(h));
    HRA_TRY(hra_comm_agree(comm, prepare(h)));
    if (comm->transport->map == NULL)
        return HRA_OK;
    HRA_TRY(hra_comm_note(comm, comm->transport->map(comm->state, h->base, BUFFERS * h->stride, h->there)));
    for (int i = 3; i < 2 * h->count; i += 2) { /* sends of what the hop before brought */
        h->transfer[i].from = &h->transfer[i - 3];
        h->transfer[i].ahead = h->transfer[i - 1].ahead && h->there[h->transfer[i].peer] != NULL;
    }
    return HRA_OK;
}

hra_status hra_hops_create(hra_hops **out, hra_comm *comm, size_t bytes, int count)
{
    hra_hops *h = NULL;

    if (out == NULL || comm == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_hops_create: %s is NULL", out == NULL ? "out" : "comm");
    if (bytes < 1 || bytes > SIZE_MAX / 4 || count < 1 || count > 1 << 20)
        return HRA_FAIL(HRA_ERR_ARG, "hra_hops_create: %d hops of %zu bytes", count, bytes);
    if (comm->transport->start == NULL || comm->ranks < 2)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "hra_hops_create: %d rank%s over %s", comm->ranks,
                        comm->ranks == 1 ? "" : "s", comm->transport->name);
    HRA_TRY(hra_comm_check(comm));
    hra_status status = hra_comm_agree(comm, hra_alloc((void **)&h, 1, sizeof(*h), "hops"));
    if (status != HRA_OK) {
        free(h);
        return status;
    }
    comm->plans++;
    comm->made++;
    h->comm = comm;
    h->bytes = bytes;
    h->count = count;
    status = build(h);
    if (status != HRA_OK) {
        hra_hops_destroy(h);
        return status;
    }
    *out = h;
    return HRA_OK;
}

/* Say from where to where, by how many hops have been made before. */
static void aim(struct hra_hops *h, struct hra_transfer *pair, int64_t before)
{
    const size_t from = (size_t)(before % BUFFERS) * h->stride,
                 to = (size_t)((before + 1) % BUFFERS) * h->stride;
    void *const there = h->there[pair[1].peer];

    pair[0].data = h->base + to;
    pair[1].data = h->base + from;
    pair[1].there = there == NULL ? NULL : (char *)there + to;
}

static hra_status hop(struct hra_hops *h, int number, void *stream)
{
    const struct hra_transport *transport = h->comm->transport;
    struct hra_transfer *const receipt = &h->transfer[2 * number], *const send = receipt + 1;
    struct hra_transfer *const next = send + 1;

    aim(h, receipt, h->done);
    HRA_TRY(transport->start(h->comm->state, (struct hra_transfer *const[]){receipt, send}, 2, stream));
    if (number + 1 < h->count && next->ahead) {
        aim(h, next, h->done + 1);
        HRA_TRY(transport->post(h->comm->state, (struct hra_transfer *const[]){next, next + 1},
                                next[1].ahead ? 2 : 1, 0, stream));
    }
    HRA_TRY(transport->finish(h->comm->state, receipt, stream));
    HRA_TRY(transport->finish(h->comm->state, send, stream));
    h->done++;
    return HRA_OK;
}

hra_status hra_hops_run(hra_hops *h, void *stream)
{
    if (h == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_hops_run: hops is NULL");
    const struct hra_transport *transport = h->comm->transport;

    HRA_TRY(hra_comm_check(h->comm));
    if (stream != NULL && transport->host_only)
        return HRA_FAIL(HRA_ERR_ARG, "hra_hops_run: stream is %p; over %s there is none: NULL", stream,
                        transport->name);
    if (transport->begin != NULL)
        HRA_TRY(transport->begin(h->comm->state, stream));
    for (int i = 0; i < h->count; i++)
        HRA_TRY(hra_comm_note(h->comm, hop(h, i, stream)));
    return transport->end == NULL ? HRA_OK : transport->end(h->comm->state, stream);
}

hra_status hra_hops_check(hra_hops *h)
{
    if (h == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_hops_check: hops is NULL");
    const int ranks = h->comm->ranks;
    return pass_over(h, (int)(h->done % BUFFERS), (int)((h->comm->rank + ranks - h->done % ranks) % ranks),
                     1);
}

void hra_hops_destroy(hra_hops *h)
{
    if (h == NULL)
        return;
    hra_comm *comm = h->comm;

    if (h->enlisted && comm->transport->delist != NULL)
        comm->transport->delist(comm->state, h->transfer, 2 * h->count);
    if (h->base != NULL && hra_comm_check(comm) == HRA_OK) /* else a peer may still write there */
        comm->transport->release(comm->state, h->base);
    comm->plans--;
    free(h->there);
    free(h->transfer);
    free(h);
}
