/* peer.c - transfers between GPUs of one node: the sender copies into the receiver's arena, which it has mapped.
 *
 * Ranks meet by words in memory of the host. Each rank has a segment of them that the others of its node map too, and
 * that holds what its own streams wait for:
 *     flag of           set by the stream of    says
 *     posted[slot]      a receiver              what we send may be written to its buffer
 *     arrived[slot]     a sender                what it sends is in our buffer
 * A flag is set by one other rank, to the tag of the transfer that it is set for, and cleared, 0, by its owner before that rank
 * can set it anew: by a sender when it has waited for the post; by a receiver before it posts the slot again, so that more than
 * one of its streams may wait for an arrival, that which computes and that which passes on. Beside a flag lies a word in which a
 * stream shows the watchdog for which transfer it waits; it is cleared with the flag by one write of 64 bits where both are,
 * since each write of a stream to the host's memory costs 1.5 us and holds up all of the GPU's other streams that have one. A
 * transfer uses the slot of its number, modulo SLOTS; a buffer is posted again, when all that was passed on from it has been
 * sent, long before its slot is. Tags do not change from one execution of a plan to the next: graphs replay, and mix with calls.
 *
 * The words lie in memory of the host, not of the GPU, so that the watchdog can set one by a plain store when the
 * rank that should have is gone. Nobody reads a word, changes it and writes it back. */
#include "comm/gpu.h"

#include <cuda.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SLOTS = 64,            /* transfers from one rank to another that may be under way */
    TRIAL_BYTES = 2 << 20, /* a page of the GPU: CUDA shares a smaller piece together with its neighbours */
    FEW_RANKS = 4096       /* whose bytes fit on the stack */
};

/* Streams for another rank: for what we send there, for posts, and for arrivals of what comes from there. Apart, so that
 * nothing waits behind a copy, and no arrival behind the post of a later transfer. */
enum { OUT, POSTS, IN, STREAMS };

typedef _Atomic uint32_t word;
_Static_assert(sizeof(word) == sizeof(uint32_t), "streams write 32 bits");

/* What a stream waits for, and whether it does: 0, or the watchdog's number of the transfer. */
struct semaphore {
    _Alignas(8) word flag;
    uint32_t waits;
};

/* What a rank waits for from one other. */
struct words {
    struct semaphore posted[SLOTS], arrived[SLOTS];
};

/* A rank's shared memory. */
struct segment {
    uint64_t number; /* random: shows that this is the one that its owner told of */
    word status;     /* hra_status of the owner's failure; message is written before */
    char message[244];
    struct words of[]; /* [ranks] */
};

/* What is known of another rank; of ourselves only the segment. */
struct peer {
    int reached;     /* 1: we map its memory, and it maps ours */
    uint64_t number; /* of its card; 0: it does not share */
    struct segment *segment;
    int registered;               /* 1: so that streams can address it */
    char *device;                 /* the segment as streams address it */
    int life;                     /* its /proc/PID/stat, open; -1: whether it lives cannot be seen */
    cudaStream_t stream[STREAMS]; /* NULL until it has told of an arena */
    uint64_t posted; /* bit s: slot s is posted and its arrival not waited for, in the order of calls */
};

/* An arena of ours that others have been told of. */
struct shared {
    struct shared *next;
    void *base;
    uint64_t number; /* 1, 2, ... */
    cudaIpcMemHandle_t handle;
    int kept; /* 1: its owner is through with it */
};

/* An arena of another rank. */
struct mapping {
    struct mapping *next;
    int rank;
    uint64_t number; /* its owner's for it */
    void *base;      /* as we address it */
};

struct hra_peers {
    int rank, ranks, local_ranks;
    int reached; /* ranks */
    struct hra_gather gather;
    struct peer *peer; /* [ranks] */
    size_t segment_bytes;
    char name[48];  /* of our segment; "" when it has none, or none any more */
    uint64_t space; /* the namespace that our process id is of; 0: not known */
    struct shared *shared;
    struct mapping *mapping;
    uint64_t arenas;       /* numbers given to ours */
    atomic_flag told;      /* our failure is in the segment, or about to be */
    void *all;             /* [ranks] what a gather brings: cards, offers, numbers, bits */
    struct hra_word *word; /* [ranks] what `agree` gathers into */
    unsigned char *bits;   /* [ranks] bits, one for each rank */
};

/* What a rank tells when a communicator is made. */
struct card {
    uint64_t number; /* random; 0: it cannot share memory */
    uint64_t space;
    int64_t pid;
    cudaIpcMemHandle_t trial;
    char host[65], boot[40], segment[48];
};

/* What a rank tells of its arena. */
struct offer {
    uint64_t number; /* 0: there is none */
    uint64_t bytes;
    cudaIpcMemHandle_t handle;
};

/* Memory that others write to in order to find out whether they can. */
struct trial {
    cudaStream_t stream;
    uint64_t *numbers; /* [ranks] device memory; number r is written by rank r */
};

/* ---- Stream memory operations ---- */

/* The driver's function is asked for here: linked, it would cost machines without a driver the whole library. */
static struct {
    __typeof__(cuStreamBatchMemOp) *batch; /* NULL: the driver has none */
} driver;

static void find_driver(void)
{
    enum cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    void *found = NULL;

    /* The second version of these operations came with CUDA 11.7; the first is switched off on most machines. */
    if (cudaGetDriverEntryPointByVersion("cuStreamBatchMemOp", &found, 12000, cudaEnableDefault, &result) ==
            cudaSuccess &&
        result == cudaDriverEntryPointSuccess)
        memcpy(&driver.batch, &found, sizeof(found));
}

/* The default flag puts a fence before the write, of the strength of __threadfence_system (cuda.h says so of
 * CUstreamWriteValue_flags): who sees the value sees what the stream did before. This version of the operations does
 * not let the fence be left out. */
static CUstreamBatchMemOpParams put(CUdeviceptr to, uint32_t value)
{
    CUstreamBatchMemOpParams op = {.pad = {0}};

    op.writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    op.writeValue.address = to;
    op.writeValue.value = value;
    op.writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT;
    return op;
}

static CUstreamBatchMemOpParams clear(CUdeviceptr semaphore)
{
    CUstreamBatchMemOpParams op = put(semaphore, 0);

    op.writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_64;
    op.writeValue.value64 = 0;
    return op;
}

/* Equal, not the default's greater or equal: tags have no order. A wait can also ask for a flush of remote writes;
 * that is for writers without such a fence, network cards. */
static CUstreamBatchMemOpParams await(CUdeviceptr at, uint32_t value)
{
    CUstreamBatchMemOpParams op = {.pad = {0}};

    op.waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    op.waitValue.address = at;
    op.waitValue.value = value;
    op.waitValue.flags = CU_STREAM_WAIT_VALUE_EQ;
    return op;
}

/* While the stream is captured they become one node of the graph. The runtime's errors have the driver's numbers. */
static hra_status enqueue(cudaStream_t stream, CUstreamBatchMemOpParams *ops, unsigned count)
{
    const CUresult result = driver.batch(stream, count, ops, 0);

    return result == CUDA_SUCCESS
               ? HRA_OK
               : HRA_FAIL(HRA_ERR_CUDA, "cuStreamBatchMemOp: %s", cudaGetErrorString((cudaError_t)result));
}

/* A semaphore, in bytes from the beginning of its segment: of rank `other`, posted where the segment's owner sends. */
static size_t place(int other, int sends, int number)
{
    return offsetof(struct segment, of) + (size_t)other * sizeof(struct words) +
           (sends ? offsetof(struct words, posted) : offsetof(struct words, arrived)) +
           (size_t)(number % SLOTS) * sizeof(struct semaphore);
}

/* What we wait for in this transfer, as the host addresses it. */
static struct semaphore *waited(const struct hra_peers *p, const struct hra_transfer *t)
{
    return (struct semaphore *)((char *)p->peer[p->rank].segment + place(t->peer, t->sends, t->number));
}

/* The flag that the other rank waits for, as streams address it. */
static CUdeviceptr awaited(const struct hra_peers *p, const struct hra_transfer *t)
{
    return (CUdeviceptr)(uintptr_t)(p->peer[t->peer].device + place(p->rank, !t->sends, t->number));
}

/* What we wait for, as streams address it. */
static CUdeviceptr waited_at(const struct hra_peers *p, const struct hra_transfer *t)
{
    return (CUdeviceptr)(uintptr_t)(p->peer[p->rank].device + place(t->peer, t->sends, t->number));
}

static CUstreamBatchMemOpParams show(CUdeviceptr semaphore, uint32_t id)
{
    return put(semaphore + offsetof(struct semaphore, waits), id);
}

static CUstreamBatchMemOpParams await_flag(CUdeviceptr semaphore, const struct hra_transfer *t)
{
    return await(semaphore + offsetof(struct semaphore, flag), t->tag);
}

hra_status hra_peers_hold(struct hra_peers *p, int rank, cudaEvent_t done)
{
    HRA_TRY_CUDA(cudaStreamWaitEvent(p->peer[rank].stream[POSTS], done, 0));
    return HRA_OK;
}

hra_status hra_peers_post(struct hra_peers *p, const struct hra_transfer *t, cudaEvent_t begun,
                          cudaEvent_t posted)
{
    struct peer *peer = &p->peer[t->peer];
    const uint64_t slot = UINT64_C(1) << t->number % SLOTS;
    CUstreamBatchMemOpParams ops[] = {clear(waited_at(p, t)), put(awaited(p, t), t->tag)};

    if (peer->posted & slot)
        return HRA_FAIL(HRA_ERR_COMM, "%s, round %d: more than %d transfers from rank %d under way", t->what,
                        t->round, SLOTS, t->peer);
    HRA_TRY_CUDA(cudaStreamWaitEvent(peer->stream[POSTS], begun, 0));
    HRA_TRY(enqueue(peer->stream[POSTS], ops, sizeof(ops) / sizeof(ops[0])));
    HRA_TRY_CUDA(cudaEventRecord(posted, peer->stream[POSTS]));
    peer->posted |= slot;
    return HRA_OK;
}

static hra_status copy(const struct hra_transfer *t, cudaStream_t stream)
{
    if (t->lines == 0)
        HRA_TRY_CUDA(cudaMemcpyAsync(t->there, t->data, t->bytes, cudaMemcpyDeviceToDevice, stream));
    for (int i = 0; i < t->lines; i++) {
        const struct hra_lines *l = &t->line[i];
        char *to = (char *)t->there + l->at;
        if (l->pitch == l->bytes && l->step == l->bytes)
            HRA_TRY_CUDA(cudaMemcpyAsync(to, l->data, l->bytes * l->count, cudaMemcpyDeviceToDevice, stream));
        else
            HRA_TRY_CUDA(cudaMemcpy2DAsync(to, l->step, l->data, l->pitch, l->bytes, l->count,
                                           cudaMemcpyDeviceToDevice, stream));
    }
    return HRA_OK;
}

/* The copy is seen wherever the arrival is: the stream does one after the other, and before it tells of the arrival
 * comes the fence of `put`, for the whole system. */
static hra_status copy_and_tell(const struct hra_peers *p, const struct hra_transfer *t, cudaEvent_t done)
{
    const cudaStream_t stream = p->peer[t->peer].stream[OUT];
    CUstreamBatchMemOpParams op = put(awaited(p, t), t->tag);

    HRA_TRY(copy(t, stream));
    HRA_TRY(enqueue(stream, &op, 1));
    HRA_TRY_CUDA(cudaEventRecord(done, stream));
    return HRA_OK;
}

/* Wait for the post, and take it. What the stream holds next, whatever of the GPU does it, comes after. */
static hra_status take(const struct hra_peers *p, const struct hra_transfer *t, cudaStream_t stream,
                       uint32_t id)
{
    const CUdeviceptr at = waited_at(p, t);
    CUstreamBatchMemOpParams ops[] = {show(at, id), await_flag(at, t), clear(at)};

    return enqueue(stream, ops, sizeof(ops) / sizeof(ops[0]));
}

hra_status hra_peers_send(struct hra_peers *p, const struct hra_transfer *t, cudaEvent_t begun,
                          cudaEvent_t done, uint32_t id)
{
    const cudaStream_t stream = p->peer[t->peer].stream[OUT];

    HRA_TRY_CUDA(cudaStreamWaitEvent(stream, begun, 0));
    HRA_TRY(take(p, t, stream, id));
    return copy_and_tell(p, t, done);
}

/* The post is waited for on a stream that has nothing to do, ahead, not on the one that copies: there, between two copies, each
 * operation takes some 1 us, and an event that is long over nothing. The arrival is waited for once more by `arrive`, which shows it
 * to the watchdog: an event of that stream would come some 4 us later. */
hra_status hra_peers_pass_on(struct hra_peers *p, const struct hra_transfer *t, cudaEvent_t posted,
                             cudaEvent_t done, uint32_t id)
{
    const cudaStream_t *stream = p->peer[t->peer].stream;
    CUstreamBatchMemOpParams arrival = await_flag(waited_at(p, t->from), t->from);

    HRA_TRY(take(p, t, stream[POSTS], id));
    HRA_TRY_CUDA(cudaEventRecord(done, stream[POSTS]));
    HRA_TRY_CUDA(cudaStreamWaitEvent(stream[OUT], done, 0));
    HRA_TRY_CUDA(cudaStreamWaitEvent(stream[OUT], posted, 0)); /* not the flag of an earlier execution */
    HRA_TRY(enqueue(stream[OUT], &arrival, 1));
    return copy_and_tell(p, t, done);
}

hra_status hra_peers_arrive(struct hra_peers *p, const struct hra_transfer *t, cudaEvent_t posted,
                            cudaEvent_t done, uint32_t id)
{
    struct peer *peer = &p->peer[t->peer];
    const CUdeviceptr at = waited_at(p, t);
    CUstreamBatchMemOpParams ops[] = {show(at, id), await_flag(at, t), show(at, 0)};

    HRA_TRY_CUDA(cudaStreamWaitEvent(peer->stream[IN], posted, 0));
    HRA_TRY(enqueue(peer->stream[IN], ops, sizeof(ops) / sizeof(ops[0])));
    HRA_TRY_CUDA(cudaEventRecord(done, peer->stream[IN]));
    peer->posted &= ~(UINT64_C(1) << t->number % SLOTS);
    return HRA_OK;
}

/* ---- For the watchdog ---- */

int hra_peers_words(const struct hra_peers *p)
{
    return p->ranks * 2 * SLOTS;
}

const uint32_t *hra_peers_word(const struct hra_peers *p, int index)
{
    const struct segment *own = p->peer[p->rank].segment;
    const int rank = index / (2 * SLOTS), slot = index % (2 * SLOTS);

    if (own == NULL || !p->peer[rank].reached)
        return NULL;
    return slot < SLOTS ? &own->of[rank].posted[slot].waits : &own->of[rank].arrived[slot - SLOTS].waits;
}

/* Has the process of this rank ended? A file that was opened while it lived is never that of another process with the
 * same number. A dead main thread alone ends no process. */
static int is_gone(const struct peer *peer)
{
    char text[1024];
    long threads = 0;
    char state = '?';

    if (peer->life < 0)
        return 0;
    const ssize_t length = pread(peer->life, text, sizeof(text) - 1, 0);
    if (length <= 0)
        return length == 0 || errno == ESRCH;
    text[length] = '\0';
    /* After the name, which may hold anything: field 3 is the state, 20 counts the threads. */
    const char *fields = strrchr(text, ')');
    if (fields == NULL ||
        sscanf(fields, ") %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %ld", &state,
               &threads) != 2)
        return 0;
    return (state == 'Z' || state == 'X') && threads <= 1;
}

/* Does this rank's segment show a failure? */
static hra_status read_failure(const struct hra_peers *p, int rank, char *why, size_t bytes)
{
    struct segment *segment = p->peer[rank].segment;

    if (!p->peer[rank].reached || atomic_load_explicit(&segment->status, memory_order_acquire) == HRA_OK)
        return HRA_OK;
    snprintf(why, bytes, "rank %d has failed: %.*s", rank, (int)sizeof(segment->message) - 1,
             segment->message);
    return HRA_ERR_REMOTE;
}

hra_status hra_peers_fare(struct hra_peers *p, char *why, size_t bytes)
{
    hra_status status = HRA_OK;

    for (int r = 0; status == HRA_OK && r < p->ranks; r++)
        status = read_failure(p, r, why, bytes);
    return status;
}

hra_status hra_peers_look(struct hra_peers *p, const struct hra_transfer *t, char *why, size_t bytes)
{
    const struct peer *peer = &p->peer[t->peer];

    if (!peer->reached)
        return HRA_OK;
    HRA_TRY(read_failure(p, t->peer, why, bytes));
    if (is_gone(peer)) {
        snprintf(why, bytes, "rank %d is gone", t->peer);
        return HRA_ERR_REMOTE;
    }
    const uint32_t found = atomic_load_explicit(&waited(p, t)->flag, memory_order_acquire);
    if (found != 0 && found != t->tag) {
        snprintf(why, bytes, "rank %d has started another transfer", t->peer);
        return HRA_ERR_MISMATCH;
    }
    return HRA_OK;
}

/* The first failure stays. Others read the sentence only once they see the status. */
void hra_peers_tell(struct hra_peers *p, hra_status status, const char *message)
{
    struct segment *own = p->peer[p->rank].segment;

    if (own == NULL || status == HRA_OK || atomic_flag_test_and_set(&p->told))
        return;
    snprintf(own->message, sizeof(own->message), "%s", message);
    atomic_store_explicit(&own->status, (uint32_t)status, memory_order_release);
}

void hra_peers_release(struct hra_peers *p, const struct hra_transfer *t)
{
    if (p->peer[t->peer].reached)
        atomic_store_explicit(&waited(p, t)->flag, t->tag, memory_order_release);
}

/* ---- Segments ---- */

/* Map a segment and let streams address it. What was done when this fails `detach` undoes. */
static hra_status attach(struct peer *peer, int file, size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

    if (memory == MAP_FAILED)
        return HRA_FAIL(HRA_ERR_MEMORY, "mmap of %zu bytes of shared memory: %s", bytes, strerror(errno));
    peer->segment = memory;
    HRA_TRY_CUDA(cudaHostRegister(memory, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable));
    peer->registered = 1;
    HRA_TRY_CUDA(cudaHostGetDevicePointer((void **)&peer->device, memory, 0));
    return HRA_OK;
}

static hra_status detach(struct peer *peer, size_t bytes)
{
    const cudaError_t error = peer->registered ? cudaHostUnregister(peer->segment) : cudaSuccess;

    if (error == cudaSuccess && peer->segment != NULL)
        munmap(peer->segment, bytes);
    peer->segment = NULL;
    peer->device = NULL;
    peer->registered = 0;
    return error == cudaSuccess ? HRA_OK
                                : HRA_FAIL(HRA_ERR_CUDA, "cudaHostUnregister: %s", cudaGetErrorString(error));
}

static hra_status detach_all(struct hra_peers *p)
{
    hra_status status = HRA_OK;

    for (int r = 0; p->peer != NULL && r < p->ranks; r++) {
        const hra_status next = detach(&p->peer[r], p->segment_bytes);
        status = status != HRA_OK ? status : next;
    }
    return status;
}

/* Take away the name of our segment. It lives on where it is mapped, and killed processes leave nothing behind. */
static void unname(struct hra_peers *p)
{
    if (p->name[0] != '\0')
        shm_unlink(p->name);
    p->name[0] = '\0';
}

/* Our own segment. Its pages are asked for here: where they cannot be had, touching one would kill the process. */
static hra_status make_segment(struct hra_peers *p, uint64_t number)
{
    struct peer *own = &p->peer[p->rank];
    int error;

    snprintf(p->name, sizeof(p->name), "/hra-%ld-%016llx", (long)getpid(), (unsigned long long)number);
    const int file = shm_open(p->name, O_CREAT | O_EXCL | O_RDWR, S_IRUSR | S_IWUSR);
    if (file < 0) {
        p->name[0] = '\0';
        return HRA_FAIL(HRA_ERR_MEMORY, "shm_open: %s", strerror(errno));
    }
    do
        error = posix_fallocate(file, 0, (off_t)p->segment_bytes);
    while (error == EINTR);
    hra_status status = error == 0 ? attach(own, file, p->segment_bytes)
                                   : HRA_FAIL(HRA_ERR_MEMORY, "no shared memory for %zu bytes: %s",
                                              p->segment_bytes, strerror(error));
    close(file);
    HRA_TRY(status);
    own->segment->number = number;
    return HRA_OK;
}

/* Another rank's. One by that name may be somebody else's, where containers have shared memory of their own. */
static hra_status open_segment(struct hra_peers *p, int rank, const struct card *card)
{
    struct peer *peer = &p->peer[rank];
    struct stat about;

    const int file = shm_open(card->segment, O_RDWR, 0);
    if (file < 0)
        return HRA_FAIL(HRA_ERR_MEMORY, "shm_open of %s: %s", card->segment, strerror(errno));
    hra_status status = HRA_OK;
    if (fstat(file, &about) != 0 || about.st_size < (off_t)p->segment_bytes)
        status = HRA_FAIL(HRA_ERR_MEMORY, "%s is shorter than %zu bytes", card->segment, p->segment_bytes);
    if (status == HRA_OK)
        status = attach(peer, file, p->segment_bytes);
    close(file);
    if (status == HRA_OK && peer->segment->number != card->number)
        status = HRA_FAIL(HRA_ERR_MEMORY, "%s is not what rank %d shares", card->segment, rank);
    return status;
}

/* ---- Who reaches whom ---- */

/* The first line of a file of /proc; "" where it cannot be read. */
static void read_line(char *out, size_t bytes, const char *path)
{
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = 0;

    if (file >= 0) {
        length = read(file, out, bytes - 1);
        close(file);
    }
    out[length > 0 ? length : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
}

/* Who we are and where. */
static void introduce(struct hra_peers *p, struct card *mine)
{
    struct stat about;

    memset(mine, 0, sizeof(*mine));
    if (gethostname(mine->host, sizeof(mine->host) - 1) != 0)
        mine->host[0] = '\0';
    read_line(mine->boot, sizeof(mine->boot), "/proc/sys/kernel/random/boot_id");
    mine->pid = getpid();
    p->space = stat("/proc/self/ns/pid", &about) == 0 ? (uint64_t)about.st_ino : 0;
    mine->space = p->space;
}

/* Everything that the others need to reach us. A rank that comes to nothing here reaches nobody, and says so. */
static hra_status share(struct hra_peers *p, struct trial *t, struct card *mine)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const size_t bytes =
        ((size_t)p->ranks * sizeof(*t->numbers) + TRIAL_BYTES - 1) / TRIAL_BYTES * TRIAL_BYTES;
    uint64_t number = 0;

    pthread_once(&once, find_driver);
    if (driver.batch == NULL)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "the driver has no cuStreamBatchMemOp");
    if (getrandom(&number, sizeof(number), 0) != (ssize_t)sizeof(number))
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "getrandom: %s", strerror(errno));
    number |= 1; /* 0 says that nothing is shared, here and in the words */
    HRA_TRY(make_segment(p, number));
    HRA_TRY_CUDA(cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking));
    HRA_TRY_CUDA(cudaMalloc((void **)&t->numbers, bytes));
    HRA_TRY_CUDA(cudaIpcGetMemHandle(&mine->trial, t->numbers));
    HRA_TRY_CUDA(cudaMemsetAsync(t->numbers, 0, bytes, t->stream));
    HRA_TRY_CUDA(
        cudaMemcpyAsync(t->numbers + p->rank, &number, sizeof(number), cudaMemcpyHostToDevice, t->stream));
    HRA_TRY_CUDA(cudaStreamSynchronize(t->stream));
    memcpy(mine->segment, p->name, sizeof(mine->segment));
    mine->number = number;
    return HRA_OK;
}

/* Leave our number in another rank's memory and in a word of its segment, as transfers do, and wait for a word of our
 * own that nobody else sets. */
static hra_status leave_number(struct hra_peers *p, const struct trial *t, int rank, uint64_t *theirs)
{
    const struct peer *own = &p->peer[p->rank];
    const CUdeviceptr at = (CUdeviceptr)(uintptr_t)(p->peer[rank].device + place(p->rank, 0, 0));
    const CUdeviceptr ours = (CUdeviceptr)(uintptr_t)(own->device + place(p->rank, 0, 0));
    CUstreamBatchMemOpParams ops[] = {put(ours, 1), await(ours, 1), put(ours, 0),
                                      put(at, (uint32_t)own->segment->number)};

    HRA_TRY_CUDA(cudaMemcpyAsync(theirs + p->rank, t->numbers + p->rank, sizeof(*theirs),
                                 cudaMemcpyDeviceToDevice, t->stream));
    HRA_TRY(enqueue(t->stream, ops, sizeof(ops) / sizeof(ops[0])));
    HRA_TRY_CUDA(cudaStreamSynchronize(t->stream));
    return HRA_OK;
}

static hra_status visit(struct hra_peers *p, const struct trial *t, int rank, const struct card *card)
{
    void *theirs;

    HRA_TRY(open_segment(p, rank, card));
    HRA_TRY_CUDA(cudaIpcOpenMemHandle(&theirs, card->trial, cudaIpcMemLazyEnablePeerAccess));
    hra_status status = leave_number(p, t, rank, theirs);
    const cudaError_t error = cudaIpcCloseMemHandle(theirs);
    HRA_TRY(status);
    return error == cudaSuccess
               ? HRA_OK
               : HRA_FAIL(HRA_ERR_CUDA, "cudaIpcCloseMemHandle: %s", cudaGetErrorString(error));
}

/* Where the life of this rank's process can be seen. */
static int watch_life(const struct hra_peers *p, const struct card *card)
{
    char path[40];

    if (p->space == 0 || card->space != p->space)
        return -1;
    snprintf(path, sizeof(path), "/proc/%lld/stat", (long long)card->pid);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* A process cannot map its own memory a second time, so ranks in one process do not reach each other. */
static int may_reach(const struct card *a, const struct card *b)
{
    return a->number != 0 && b->number != 0 && (a->pid != b->pid || a->space != b->space);
}

static int same_node(const struct card *a, const struct card *b)
{
    return a->boot[0] != '\0' && strcmp(a->boot, b->boot) == 0 && strcmp(a->host, b->host) == 0;
}

/* What keeps us from reaching a rank (our own: from reaching any) is no error, and no later call of the program shall
 * find one in the runtime. */
static void excuse(const struct hra_peers *p, int rank)
{
    cudaGetLastError();
    if (rank == p->rank)
        hra_log(HRA_LOG_INFO, "peer: rank %d reaches no other: %s", rank, hra_last_error());
    else
        hra_log(HRA_LOG_INFO, "peer: rank %d does not reach rank %d: %s", p->rank, rank, hra_last_error());
}

/* Visit all ranks of this node that share something. */
static void visit_all(struct hra_peers *p, const struct trial *t)
{
    const struct card *card = p->all, *mine = &card[p->rank];

    for (int r = 0; r < p->ranks; r++) {
        struct peer *peer = &p->peer[r];
        peer->number = card[r].number;
        p->local_ranks += r == p->rank || same_node(mine, &card[r]);
        if (r == p->rank || !same_node(mine, &card[r]) || !may_reach(mine, &card[r]))
            continue;
        peer->reached = visit(p, t, r, &card[r]) == HRA_OK; /* so far: from here to there */
        if (peer->reached)
            peer->life = watch_life(p, &card[r]);
        else
            excuse(p, r);
    }
}

/* Which of the ranks that we have visited have been here: bits. Frees the memory of the trial, which nobody has mapped
 * any more. */
static hra_status read_visits(struct hra_peers *p, struct trial *t)
{
    const uint64_t *number = p->all;
    struct words *of = p->peer[p->rank].segment->of;

    HRA_TRY_CUDA(cudaMemcpyAsync(p->all, t->numbers, (size_t)p->ranks * sizeof(*number),
                                 cudaMemcpyDeviceToHost, t->stream));
    HRA_TRY_CUDA(cudaStreamSynchronize(t->stream));
    HRA_TRY_CUDA(cudaFree(t->numbers));
    t->numbers = NULL;
    for (int r = 0; r < p->ranks; r++) {
        const struct peer *peer = &p->peer[r];
        const uint32_t found = atomic_load(&of[r].arrived[0].flag);
        atomic_store(&of[r].arrived[0].flag, 0);
        if (peer->reached && number[r] == peer->number && found == (uint32_t)peer->number)
            p->bits[r / 8] |= (unsigned char)(1 << r % 8);
    }
    return HRA_OK;
}

static hra_status gather(const struct hra_peers *p, void *all, const void *mine, size_t bytes)
{
    return p->gather.call(p->gather.state, all, mine, bytes);
}

static size_t bit_bytes(int ranks)
{
    return ((size_t)ranks + 7) / 8;
}

/* A pair reach each other if each has visited the other and found its visit. */
static hra_status compare_visits(struct hra_peers *p)
{
    const size_t bytes = bit_bytes(p->ranks);
    const unsigned char *all = p->all;

    HRA_TRY(gather(p, p->all, p->bits, bytes));
    for (int r = 0; r < p->ranks; r++) {
        struct peer *peer = &p->peer[r];
        const int here = p->bits[r / 8] >> r % 8 & 1;
        const int there = all[(size_t)r * bytes + (size_t)p->rank / 8] >> p->rank % 8 & 1;
        peer->reached = here && there;
        p->reached += peer->reached;
        if (!peer->reached && r != p->rank && detach(peer, p->segment_bytes) != HRA_OK)
            excuse(p, r);
    }
    return HRA_OK;
}

/* Every rank goes through the three gathers, whatever it has come to. */
static hra_status try_all(struct hra_peers *p, struct trial *t)
{
    struct card mine;
    const char here = 0;

    introduce(p, &mine);
    const int shares = share(p, t, &mine) == HRA_OK;
    if (!shares) { /* nor has anybody been told of what there is */
        cudaFree(t->numbers);
        excuse(p, p->rank);
    }
    HRA_TRY(gather(p, p->all, &mine, sizeof(mine)));
    visit_all(p, t);
    HRA_TRY(gather(p, p->all, &here, sizeof(here)));
    unname(p);
    if (shares && read_visits(p, t) != HRA_OK) {
        memset(p->bits, 0, bit_bytes(p->ranks));
        excuse(p, p->rank);
    }
    return compare_visits(p);
}

/* ---- Making and closing ---- */

static hra_status make(struct hra_peers **out, int rank, int ranks, struct hra_gather with)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t words = offsetof(struct segment, of) + (size_t)ranks * sizeof(struct words);
    const size_t largest = sizeof(struct card) + bit_bytes(ranks);
    struct hra_peers *p = NULL;

    HRA_TRY(hra_alloc((void **)&p, 1, sizeof(*p), "peer"));
    *p = (struct hra_peers){.rank = rank,
                            .ranks = ranks,
                            .gather = with,
                            .segment_bytes = (words + page - 1) / page * page,
                            .told = ATOMIC_FLAG_INIT};
    hra_status status = hra_alloc((void **)&p->peer, ranks, sizeof(*p->peer), "peer");
    if (status == HRA_OK)
        status = hra_alloc(&p->all, ranks, largest, "peer");
    if (status == HRA_OK)
        status = hra_alloc((void **)&p->word, ranks, sizeof(*p->word), "peer");
    if (status == HRA_OK)
        status = hra_alloc((void **)&p->bits, 1, bit_bytes(ranks), "peer");
    *out = p;
    for (int r = 0; p->peer != NULL && r < ranks; r++)
        p->peer[r].life = -1;
    return status;
}

/* Does every rank have its memory? Asked with memory of the stack, because a rank that has none must still come; `p` may
 * be NULL. (One of more than FEW_RANKS cannot come then, and leaves the others to their time limit.) */
static hra_status all_made(struct hra_peers *p, int rank, int ranks, struct hra_gather with, hra_status mine)
{
    const unsigned char failed = mine != HRA_OK;
    unsigned char few[FEW_RANKS], *all = few;

    if (ranks > FEW_RANKS) {
        HRA_TRY(mine);
        all = p->all;
    }
    hra_status status = with.call(with.state, all, &failed, 1);
    for (int r = 0; status == HRA_OK && r < ranks; r++)
        if (all[r] && r != rank)
            status = HRA_FAIL(HRA_ERR_MEMORY, "peer: rank %d has no memory to keep %d ranks in", r, ranks);
    return mine != HRA_OK ? mine : status;
}

static void free_all(struct hra_peers *p)
{
    for (int r = 0; p->peer != NULL && r < p->ranks; r++)
        if (p->peer[r].life >= 0)
            close(p->peer[r].life);
    for (struct shared *s = p->shared, *next; s != NULL; s = next) {
        next = s->next;
        free(s);
    }
    for (struct mapping *m = p->mapping, *next; m != NULL; m = next) {
        next = m->next;
        free(m);
    }
    free(p->peer);
    free(p->all);
    free(p->word);
    free(p->bits);
    free(p);
}

hra_status hra_peers_open(struct hra_peers **out, int rank, int ranks, struct hra_gather with)
{
    struct trial t = {NULL, NULL};
    struct hra_peers *p = NULL;

    hra_status status = make(&p, rank, ranks, with);
    status = all_made(p, rank, ranks, with, status);
    if (status == HRA_OK)
        status = try_all(p, &t);
    if (t.stream != NULL)
        cudaStreamDestroy(t.stream);
    if (status == HRA_OK) {
        hra_log(HRA_LOG_INFO, "peer: rank %d reaches %d of %d other ranks of its node", rank, p->reached,
                p->local_ranks - 1);
        *out = p;
    } else if (p != NULL) {
        /* The memory of the trial stays where ranks did not come: they may still write to it. */
        unname(p);
        detach_all(p);
        free_all(p);
    }
    return status;
}

int hra_peers_reach(const struct hra_peers *p, int peer)
{
    return p->peer[peer].reached;
}

/* ---- Arenas ---- */

/* Every rank leaves with the same status: OK if all are, else that of the lowest rank that failed, with its
 * sentence. */
static hra_status agree(struct hra_peers *p, hra_status mine)
{
    struct hra_word own = {.status = (int)mine};

    if (mine != HRA_OK)
        snprintf(own.message, sizeof(own.message), "%s", hra_last_error());
    HRA_TRY(gather(p, p->word, &own, sizeof(own)));
    for (int r = 0; r < p->ranks; r++) {
        const struct hra_word *said = &p->word[r];
        if (said->status == HRA_OK)
            continue;
        return r == p->rank ? HRA_FAIL(mine, "%s", own.message)
                            : HRA_FAIL((hra_status)said->status, "rank %d: %s", r, said->message);
    }
    return HRA_OK;
}

/* Give the arena a number and a handle. */
static hra_status add_shared(struct hra_peers *p, struct shared **out, void *arena)
{
    struct shared *s = NULL;

    HRA_TRY(hra_alloc((void **)&s, 1, sizeof(*s), "arena"));
    const cudaError_t error = cudaIpcGetMemHandle(&s->handle, arena);
    if (error != cudaSuccess) {
        free(s);
        return HRA_FAIL(HRA_ERR_CUDA, "cudaIpcGetMemHandle of an arena: %s", cudaGetErrorString(error));
    }
    s->base = arena;
    s->number = ++p->arenas;
    s->next = p->shared;
    p->shared = s;
    *out = s;
    return HRA_OK;
}

static struct shared *find_shared(const struct hra_peers *p, const void *arena)
{
    struct shared *s = p->shared;

    while (s != NULL && s->base != arena)
        s = s->next;
    return s;
}

/* What we tell of our arena. */
static hra_status make_offer(struct hra_peers *p, struct offer *mine, void *arena, size_t bytes)
{
    if (arena == NULL || p->reached == 0)
        return HRA_OK;
    struct shared *s = find_shared(p, arena);
    if (s == NULL)
        HRA_TRY(add_shared(p, &s, arena));
    *mine = (struct offer){s->number, bytes, s->handle};
    return HRA_OK;
}

/* Where we address arena `number` of a rank; NULL: it is not mapped. */
static void *address(const struct hra_peers *p, int rank, uint64_t number)
{
    const struct mapping *m = p->mapping;

    while (m != NULL && (m->rank != rank || m->number != number))
        m = m->next;
    return m == NULL ? NULL : m->base;
}

/* Map another rank's arena, and make the streams for what is sent there: now, since no stream can be made while one is
 * captured in a graph. */
static hra_status add_mapping(struct hra_peers *p, int rank, const struct offer *offer)
{
    struct peer *peer = &p->peer[rank];
    struct mapping *m = NULL;
    int greatest = 0;

    HRA_TRY_CUDA(cudaDeviceGetStreamPriorityRange(NULL, &greatest));
    for (int i = 0; i < STREAMS; i++)
        if (peer->stream[i] == NULL)
            HRA_TRY_CUDA(cudaStreamCreateWithPriority(&peer->stream[i], cudaStreamNonBlocking, greatest));
    HRA_TRY(hra_alloc((void **)&m, 1, sizeof(*m), "arena"));
    const cudaError_t error = cudaIpcOpenMemHandle(&m->base, offer->handle, cudaIpcMemLazyEnablePeerAccess);
    if (error != cudaSuccess) {
        free(m);
        return HRA_FAIL(HRA_ERR_CUDA, "cudaIpcOpenMemHandle of the arena of rank %d, %llu bytes: %s", rank,
                        (unsigned long long)offer->bytes, cudaGetErrorString(error));
    }
    m->rank = rank;
    m->number = offer->number;
    m->next = p->mapping;
    p->mapping = m;
    return HRA_OK;
}

static hra_status map_new(struct hra_peers *p, const struct offer *offer)
{
    for (int r = 0; r < p->ranks; r++)
        if (p->peer[r].reached && offer[r].number != 0 && address(p, r, offer[r].number) == NULL)
            HRA_TRY(add_mapping(p, r, &offer[r]));
    return HRA_OK;
}

hra_status hra_peers_map(struct hra_peers *p, void *arena, size_t bytes, void **there)
{
    struct offer mine = {0}, *offer = p->all;

    hra_status status = make_offer(p, &mine, arena, bytes);
    HRA_TRY(gather(p, offer, &mine, sizeof(mine)));
    if (status == HRA_OK)
        status = map_new(p, offer);
    if (status == HRA_ERR_CUDA)
        cudaGetLastError(); /* the status tells of it; no later call of the program shall find it in the runtime */
    HRA_TRY(agree(p, status));
    for (int r = 0; r < p->ranks; r++)
        there[r] = address(p, r, offer[r].number);
    return HRA_OK;
}

int hra_peers_keep(struct hra_peers *p, void *arena)
{
    struct shared *s = find_shared(p, arena);

    if (s == NULL)
        return 0;
    s->kept = 1;
    return 1;
}

/* ---- Closing ---- */

/* Let go of other ranks' arenas, all of them even if one fails. */
static hra_status unmap_all(const struct hra_peers *p)
{
    hra_status status = HRA_OK;

    for (const struct mapping *m = p->mapping; m != NULL; m = m->next) {
        const cudaError_t error = cudaIpcCloseMemHandle(m->base);
        if (error != cudaSuccess && status == HRA_OK)
            status = HRA_FAIL(HRA_ERR_CUDA, "cudaIpcCloseMemHandle of the arena of rank %d: %s", m->rank,
                              cudaGetErrorString(error));
    }
    return status;
}

static hra_status free_kept(const struct hra_peers *p)
{
    hra_status status = HRA_OK;

    for (const struct shared *s = p->shared; s != NULL; s = s->next) {
        const cudaError_t error = s->kept ? cudaFree(s->base) : cudaSuccess;
        if (error != cudaSuccess && status == HRA_OK)
            status = HRA_FAIL(HRA_ERR_CUDA, "cudaFree of an arena: %s", cudaGetErrorString(error));
    }
    return status;
}

/* What the streams of this process held has been done, unless failed. Where it may not have been, words, mappings and
 * arenas stay as they are until the process ends: our streams may still write and wait there, and those of other ranks
 * write to our arenas. Arenas stay, too, where a rank could not let go of them. */
hra_status hra_peers_close(struct hra_peers *p, int failed)
{
    hra_status status = HRA_OK;

    if (p == NULL)
        return HRA_OK;
    for (int r = 0; r < p->ranks; r++) /* at once or, where they still work, when they are through */
        for (int i = 0; i < STREAMS; i++)
            if (p->peer[r].stream[i] != NULL)
                cudaStreamDestroy(p->peer[r].stream[i]);
    if (!failed) {
        status = agree(p, unmap_all(p));
        if (status == HRA_OK)
            status = free_kept(p);
        const hra_status next = detach_all(p);
        status = status != HRA_OK ? status : next;
    }
    free_all(p);
    return status;
}
