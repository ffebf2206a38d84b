/* faults.c - one rank misbehaves, and what the others then see. Started by faults.sh:
 *
 *     mpirun --enable-recovery -n PROCESSES gpu-rank-faults gpu|nccl|peer RANKS FAULTS SEED
 *
 * Every fault has a communicator of its own over RANKS processes, each in a place of its own. KINDS faults
 * in a row are one of each kind, the killed rank first; what else there is to choose is drawn from the seed.
 * A process that was killed is replaced by one that has waited: PROCESSES is RANKS and one for each kill
 * that is not the last fault. After each fault one line goes to stdout, in fields separated by tabs:
 *
 *     fault  TRANSPORT  NUMBER  KIND  eager|graph  RANKS  STATUSES  right|WRONG  WHAT HAPPENED
 *
 * What is wrong is printed to stderr before it. A process that hangs ends itself by an alarm, and then the
 * others do, so that lines are missing; a process that cannot end is killed by the time limit of faults.sh.
 *
 * peer-rank-faults is the same over peer, on the devices of tests/peer. */
#include "tests/gpu/layer.h"

#include <hra/mpi.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

/* Of what all ranks execute. */
#ifndef FAULTS_TOKENS
#define FAULTS_TOKENS 700
#endif

enum {
    SETUP_S = 60, /* for making a communicator */
    ALARM_S = 60, /* for one fault, with everything around it */
    MARGIN_S = 2, /* beyond the limit until the others know */
    MOST_RANKS = 8,
    COME = 1 /* tag of the message for who replaces a killed process */
};

enum kind {
    KILLED, /* by SIGKILL, while its stream works */
    HELD,   /* it calls, but its stream does not get there */
    OTHER,  /* it executes another plan, with blocks of the same size */
    ABSENT, /* it never calls */
    SIZES,  /* another plan, with larger blocks */
    KINDS
};
static const char *const kind_names[KINDS] = {"killed", "stream held", "another plan", "never calls",
                                              "another plan, other sizes"};

/* The layers of a communicator: what all execute, and what OTHER and SIZES do. */
enum { RIGHT, SAME_SIZE, LARGER, LAYERS };

struct fault {
    int number;
    enum kind kind;
    int victim;   /* the place of who misbehaves */
    int graph;    /* 1: calls are replays */
    int backward; /* 1: calls are backwards; else forwards. A graph has both */
    int good;     /* executions before, at least 1 */
    int flight;   /* executions that are enqueued before anybody waits */
    double delay_s, limit_s;
};

/* What a rank tells of a fault. */
struct outcome {
    hra_status status;
    int late;  /* 1: it misbehaved, and then came */
    int wrong; /* checks that did not hold */
    double took_s;
    char sentence[256];
};

/* One process among the others. */
static struct {
    hra_transport_kind transport;
    int ranks, faults;
    uint64_t seed;
    int place;
    int member[MOST_RANKS]; /* the process in each place */
    MPI_Comm *team;         /* of the places, between two kills */
    MPI_Comm all;           /* that of now */
    const char *transport_name;
    unsigned char *wanted[LAYERS];
} me;

/* One fault as a rank goes through it. */
struct scene {
    struct fault fault;
    MPI_Comm others; /* without the victim, who has one for itself */
    pid_t victim;
    hra_comm *comm;
    struct layer layer[LAYERS];
    cudaGraphExec_t graph[LAYERS]; /* where fault.graph */
    cudaStream_t stream;
    struct outcome mine;
};

/* ---- What is drawn ---- */

static uint64_t drawn(int number, int what, uint64_t below)
{
    return random_bits(me.seed, (uint64_t)number * 16 + (uint64_t)what) % below;
}

static struct fault fault_number(int n)
{
    /* In which NCCL must get through an execution beside seven others, too, whose kernels wait on the same GPUs. */
    const double least_s = me.transport == HRA_TRANSPORT_NCCL   ? 2.5
                           : me.transport == HRA_TRANSPORT_PEER ? 0.5
                                                                : 1.5;

    return (struct fault){.number = n,
                          .kind = (enum kind)(n % KINDS),
                          .victim = (int)drawn(n, 0, (uint64_t)me.ranks),
                          .graph = (int)drawn(n, 1, 2),
                          .backward = (int)drawn(n, 2, 2),
                          .good = 1 + (int)drawn(n, 3, 8),
                          .flight = 1 + (int)drawn(n, 4, 6),
                          .delay_s = 1e-6 * (double)drawn(n, 5, 30000),
                          .limit_s = least_s + 1e-3 * (double)drawn(n, 6, 500)};
}

/* ---- Hangs and crashes ---- */

static const char *volatile stage = "starting";

/* By an alarm, or because of a crash: mpirun does not speak of those where it goes on without a process. */
static void on_signal(int number)
{
    const char *text =
        number == SIGALRM ? "a process hangs, or waits for one that does: " : "a process crashed: ";

    if (write(STDERR_FILENO, text, strlen(text)) < 0 || write(STDERR_FILENO, stage, strlen(stage)) < 0 ||
        write(STDERR_FILENO, "\n", 1) < 0)
        _exit(5);
    _exit(4);
}

static void watch_signals(void)
{
    static const int numbers[] = {SIGALRM, SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        signal(numbers[i], on_signal);
}

/* ---- One fault ---- */

static hra_status call(struct scene *s, int n)
{
    if (s->fault.graph)
        NEED_CUDA(cudaGraphLaunch(s->graph[n], s->stream));
    else
        return s->fault.backward ? layer_backward(&s->layer[n], s->stream)
                                 : layer_forward(&s->layer[n], s->stream);
    return HRA_OK;
}

/* Layers with the same inputs each time give the bits of the first time, also in a process that has seen
 * many faults. */
static void scene_open(struct scene *s)
{
    static const struct {
        int64_t tokens;
        const char *mask;
    } rows[LAYERS] = {
        {FAULTS_TOKENS, "full"}, {FAULTS_TOKENS, "!window(0,0)"}, {FAULTS_TOKENS / 7 * 11, "full"}};
    const hra_comm_options options = {.size = sizeof(options),
                                      .timeout_s = s->fault.limit_s,
                                      .transport = me.transport,
                                      .setup_timeout_s = SETUP_S};

    stage = "making a communicator";
    s->victim = getpid();
    MPI_Bcast(&s->victim, (int)sizeof(s->victim), MPI_BYTE, s->fault.victim, me.all);
    MPI_Barrier(me.all);
    NEED_HRA(hra_comm_create_mpi(&s->comm, me.all, &options));
    s->stream = device_stream();
    stage = "computing before the fault";
    for (int n = 0; n < LAYERS; n++) {
        struct problem p = problem_of(rows[n].tokens, "identity", rows[n].mask, HRA_BF16);
        size_t bytes;
        p.shard = HRA_SHARD_CONTIGUOUS;
        layer_open(&s->layer[n], &p, s->comm);
        unsigned char *got = layer_step(&s->layer[n], n, s->stream, &bytes);
        if (me.wanted[n] == NULL)
            me.wanted[n] = got;
        else
            free(got);
        layer_expect(&s->layer[n], me.wanted[n], "layer", n);
        if (s->fault.graph)
            s->graph[n] = layer_record(&s->layer[n], s->stream);
    }
    for (int i = 0; i < s->fault.good; i++)
        NEED_HRA(call(s, RIGHT));
    layer_wait(&s->layer[RIGHT], s->stream);
    layer_expect(&s->layer[RIGHT], me.wanted[RIGHT], "execution", s->fault.good);
}

static void scene_close(struct scene *s)
{
    stage = "destroying a communicator that failed";
    for (int n = 0; n < LAYERS; n++) {
        if (s->fault.graph)
            NEED_CUDA(cudaGraphExecDestroy(s->graph[n]));
        layer_close(&s->layer[n]);
    }
    const hra_status status = hra_comm_destroy(s->comm);
    CHECK(status == HRA_OK, "%s: %s", hra_status_name(status), hra_last_error());
}

/* Execute layer n again and again until that fails, at the latest when it must have. */
static hra_status fail(struct scene *s, int n)
{
    const double begin = now_s(), latest_s = s->fault.limit_s + MARGIN_S;
    hra_status status = HRA_OK;

    for (int i = 1; status == HRA_OK && now_s() - begin <= latest_s; i++) {
        status = call(s, n);
        if (status == HRA_OK && i % s->fault.flight == 0)
            status = hra_comm_wait(s->comm, s->stream);
    }
    s->mine.took_s = now_s() - begin;
    CHECK(s->mine.took_s <= latest_s, "%s after %.2f s, the limit is %.2f s", hra_status_name(status),
          s->mine.took_s, s->fault.limit_s);
    return status;
}

static unsigned bit(hra_status status)
{
    return 1u << status;
}

/* What may be found out. Over NCCL a dead process is not told from a late one, and where two ranks differ
 * either may be the first to notice, and the other then hears of it. */
static unsigned right_statuses(const struct fault *f)
{
    const unsigned peer = me.transport == HRA_TRANSPORT_PEER, late = bit(HRA_ERR_TIMEOUT),
                   gone = bit(HRA_ERR_REMOTE);

    if (f->kind == KILLED)
        return peer ? gone : gone | late;
    if (f->kind == OTHER || f->kind == SIZES)
        return peer ? bit(HRA_ERR_MISMATCH) | gone : bit(HRA_ERR_MISMATCH) | gone | late;
    return me.ranks == 2 ? late : late | gone; /* of several ranks the first one tells the others */
}

/* What at least one rank must have found out; 0: nothing more. */
static unsigned needed_status(const struct fault *f)
{
    if (f->kind == ABSENT || f->kind == HELD)
        return bit(HRA_ERR_TIMEOUT);
    return f->kind != KILLED && me.transport == HRA_TRANSPORT_PEER ? bit(HRA_ERR_MISMATCH) : 0;
}

/* The communicator's status, and a sentence that has plan, round and another rank in it. */
static void expect_sentence(struct scene *s, hra_status status)
{
    int others = 0;

    const hra_status known = hra_comm_get_status(s->comm);
    snprintf(s->mine.sentence, sizeof(s->mine.sentence), "%s", known == HRA_OK ? "" : hra_last_error());
    CHECK(known == status, "the call gave %s, the communicator's status is %s: %s", hra_status_name(status),
          hra_status_name(known), s->mine.sentence);
    for (int r = 0; r < me.ranks; r++) {
        char name[16];
        snprintf(name, sizeof(name), "rank %d", r);
        others += r != me.place && strstr(s->mine.sentence, name) != NULL;
    }
    CHECK(strstr(s->mine.sentence, " of plan ") != NULL && strstr(s->mine.sentence, "round ") != NULL &&
              others > 0,
          "'%s' names no plan, round or peer", s->mine.sentence);
}

/* The stream comes to its end by itself, and then everything else on this GPU. */
static void expect_drained(struct scene *s)
{
    const double begin = now_s();

    stage = "waiting for the stream to drain";
    while (cudaStreamQuery(s->stream) == cudaErrorNotReady && now_s() - begin < 10)
        rest(0.001);
    CHECK(now_s() - begin < MARGIN_S, "the stream took %.1f s to drain", now_s() - begin);
    NEED_CUDA(cudaStreamSynchronize(s->stream));
    NEED_CUDA(cudaDeviceSynchronize());
}

static void expect_refused(struct scene *s, hra_status status)
{
    const struct setup *setup = &s->layer[RIGHT].setup;
    hra_plan *plan = NULL;
    hra_hops *hops = NULL;
    const hra_status later[] = {
        layer_forward(&s->layer[RIGHT], s->stream),
        layer_backward(&s->layer[LARGER], s->stream),
        hra_comm_wait(s->comm, s->stream),
        hra_plan_create(&plan, s->comm, &setup->problem, setup->order, setup->mask, &setup->options),
        hra_hops_create(&hops, s->comm, 64, 1),
        hra_comm_get_status(s->comm)};

    for (size_t i = 0; i < sizeof(later) / sizeof(later[0]); i++)
        CHECK(later[i] == status, "later call %zu: %s after %s", i, hra_status_name(later[i]),
              hra_status_name(status));
}

/* Go on as if nothing were wrong, and see that it is noticed. A process that is killed is there until the system has taken
 * its GPU from it, which can last longer than the limit; until then it is late. */
static void witness(struct scene *s, int n, unsigned right)
{
    stage = "waiting for a failure";
    const hra_status status = fail(s, n);
    if (s->fault.kind == KILLED && status == HRA_ERR_TIMEOUT && kill(s->victim, 0) == 0)
        right |= bit(HRA_ERR_TIMEOUT);
    CHECK(bit(status) & right, "%s: %s", hra_status_name(status), status == HRA_OK ? "" : hra_last_error());
    s->mine.status = status;
    if (status == HRA_OK) /* it goes on, and what it does now is of no use */
        return;
    expect_sentence(s, status);
    expect_drained(s);
    expect_refused(s, status);
}

static void die(struct scene *s)
{
    const double begin = now_s();

    for (int i = 1;; i++) {
        NEED_HRA(call(s, RIGHT));
        if (now_s() - begin >= s->fault.delay_s)
            raise(SIGKILL);
        if (i % s->fault.flight == 0)
            NEED_HRA(hra_comm_wait(s->comm, s->stream));
    }
}

/* Whoever comes after the others have failed, and perhaps gone on, learns of it: on this node what they say, else that they
 * do not come, or come with something else: what a communicator that was aborted leaves in NCCL's buffers may be taken for
 * their message. */
static void come_late(struct scene *s)
{
    const unsigned gone = bit(HRA_ERR_REMOTE), any = gone | bit(HRA_ERR_TIMEOUT) | bit(HRA_ERR_MISMATCH);

    s->mine.late = 1;
    witness(s, RIGHT, me.transport == HRA_TRANSPORT_PEER ? gone : any);
}

/* The stream gets to nothing until all others are through. Our own wait ends as theirs do. */
static void hold_up(struct scene *s)
{
    const double begin = now_s();
    atomic_int released = 0;

    stage = "waiting for a stream that is held up";
    hold_stream(s->stream, &released);
    NEED_HRA(call(s, RIGHT));
    const hra_status status = hra_comm_wait(s->comm, s->stream);
    CHECK(status == HRA_ERR_TIMEOUT || status == HRA_ERR_REMOTE, "%s: %s", hra_status_name(status),
          hra_last_error());
    CHECK(now_s() - begin <= s->fault.limit_s + MARGIN_S, "after %.2f s", now_s() - begin);
    MPI_Barrier(me.all);
    atomic_store(&released, 1);
    come_late(s);
}

static void misbehave(struct scene *s)
{
    switch (s->fault.kind) {
    case KILLED:
        die(s);
        break;
    case HELD:
        hold_up(s);
        break;
    case ABSENT:
        MPI_Barrier(me.all);
        come_late(s);
        break;
    case OTHER:
    case SIZES:
    case KINDS:
        witness(s, s->fault.kind == OTHER ? SAME_SIZE : LARGER, right_statuses(&s->fault));
        break;
    }
}

/* The line of a fault, from what the ranks tell that saw it. */
static void tell(const struct fault *f, const struct outcome *told, int count)
{
    const char *sentence = NULL;
    unsigned seen = 0;
    double took_s = 0;
    int wrong = 0, several = 0;

    for (int i = 0; i < count; i++) {
        wrong += told[i].wrong;
        if (told[i].late)
            continue;
        took_s = told[i].took_s > took_s ? told[i].took_s : took_s;
        seen |= bit(told[i].status);
        sentence = sentence == NULL ? told[i].sentence : sentence;
    }
    if (needed_status(f) != 0 && (needed_status(f) & seen) == 0) {
        fprintf(stderr, "fault %d: no rank has found out what is wrong\n", f->number);
        wrong++;
    }
    printf("fault\t%s\t%d\t%s\t%s\t%d\t", me.transport_name, f->number, kind_names[f->kind],
           f->graph ? "graph" : "eager", me.ranks);
    for (int status = HRA_OK; status <= HRA_ERR_STATE; status++)
        if (seen & bit((hra_status)status))
            printf("%s%s", several++ ? "+" : "", strrchr(hra_status_name((hra_status)status), '_') + 1);
    printf("\t%s\trank %d, limit %.2f s, after %.2f s: %s\n", wrong ? "WRONG" : "right", f->victim,
           f->limit_s, took_s, sentence);
    fflush(stdout);
}

/* The first of those who are left writes the line. */
static void report(struct scene *s, int before)
{
    MPI_Comm who = s->fault.kind == KILLED ? s->others : me.all;
    struct outcome told[MOST_RANKS];
    int count, number;

    stage = "telling what happened";
    s->mine.wrong = failures - before;
    MPI_Comm_size(who, &count);
    MPI_Comm_rank(who, &number);
    MPI_Gather(&s->mine, (int)sizeof(s->mine), MPI_BYTE, told, (int)sizeof(s->mine), MPI_BYTE, 0, who);
    if (number == 0)
        tell(&s->fault, told, count);
}

static void suffer(int n)
{
    struct scene s = {.fault = fault_number(n)};
    const int before = failures, is_victim = me.place == s.fault.victim;

    alarm(ALARM_S);
    scene_open(&s);
    MPI_Comm_split(me.all, is_victim, me.place, &s.others);
    MPI_Barrier(me.all);
    if (is_victim)
        misbehave(&s);
    else
        witness(&s, RIGHT, right_statuses(&s.fault));
    if (!is_victim && (s.fault.kind == HELD || s.fault.kind == ABSENT))
        MPI_Barrier(me.all); /* now the late one comes */
    if (n + 1 < me.faults ||
        me.seed % 2 == 0) /* a program may also end with a communicator that has failed */
        scene_close(&s);
    report(&s, before);
    MPI_Comm_free(&s.others);
}

/* ---- Processes and places ---- */

/* Faults before n have happened: who is where. */
static void fill_places(int n)
{
    int next = me.ranks;

    for (int r = 0; r < me.ranks; r++)
        me.member[r] = r;
    for (int i = 0; i < n; i++) {
        const struct fault f = fault_number(i);
        if (f.kind == KILLED)
            me.member[f.victim] = next++;
    }
}

/* How many are killed before fault n. */
static int kills_before(int n)
{
    return (n + KINDS - 1) / KINDS;
}

/* While all live, since Open MPI 4.1 hung in MPI_Comm_create_group in a third of the programs of which a process had been
 * killed. */
static void make_teams(void)
{
    const int last = me.faults - 1;

    stage = "making teams";
    me.team = malloc((size_t)(kills_before(last) + 1) * sizeof(MPI_Comm));
    NEED(me.team == NULL, "no memory");
    for (int n = 0; n <= last; n += n == 0 ? 1 : KINDS) {
        int place = MPI_UNDEFINED;
        fill_places(n);
        for (int r = 0; r < me.ranks; r++)
            if (me.member[r] == own_rank)
                place = r;
        MPI_Comm_split(MPI_COMM_WORLD, place == MPI_UNDEFINED ? MPI_UNDEFINED : 0, place,
                       &me.team[kills_before(n)]);
    }
}

/* Whoever replaces the killed one of fault n - 1 is waiting for a message from the first of the others. */
static void replace(int n)
{
    const int victim = fault_number(n - 1).victim;

    fill_places(n);
    if (me.place == (victim == 0 ? 1 : 0))
        MPI_Send(&n, 1, MPI_INT, me.member[victim], COME, MPI_COMM_WORLD);
    me.all = me.team[kills_before(n)];
}

/* The first fault of this process, 0 or that after the one in which it replaces the killed rank; sets its place. */
static int first_fault(void)
{
    int n = 0;

    while (me.team[kills_before(n)] == MPI_COMM_NULL)
        n++;
    MPI_Comm_rank(me.team[kills_before(n)], &me.place);
    return n;
}

/* Load what a first execution loads, alone and without a time limit. */
static void warm_up(void)
{
    const struct problem p = problem_of(FAULTS_TOKENS, "identity", "!window(0,0)", HRA_BF16);
    hra_comm *self = NULL;
    struct layer l;
    size_t bytes;

    NEED_DEVICE(device_open(HRA_BACKEND_CUDA, me.place));
    NEED(device_name()[0] == '\0', "there is no GPU");
    NEED_HRA(hra_comm_create_self(&self));
    layer_open(&l, &p, self);
    free(layer_step(&l, 1, device_stream(), &bytes));
    layer_close(&l);
    NEED_HRA(hra_comm_destroy(self));
}

/* Until it is our turn; looks now and then, since MPI's own waiting takes a core. */
static void wait_for_turn(void)
{
    MPI_Request request;
    int number, come = 0;

    MPI_Irecv(&number, 1, MPI_INT, MPI_ANY_SOURCE, COME, MPI_COMM_WORLD, &request);
    for (;;) {
        MPI_Test(&request, &come, MPI_STATUS_IGNORE);
        if (come)
            return;
        rest(0.005);
    }
}

static int is_set_up(int argc, char **argv)
{
    static const struct {
        const char *name;
        hra_transport_kind kind;
    } transports[] = {{"gpu", HRA_TRANSPORT_GPU}, {"nccl", HRA_TRANSPORT_NCCL}, {"peer", HRA_TRANSPORT_PEER}};

    for (size_t i = 0; argc == 5 && i < sizeof(transports) / sizeof(transports[0]); i++)
        if (strcmp(argv[1], transports[i].name) == 0) {
            me.transport = transports[i].kind;
            me.transport_name = transports[i].name;
            me.ranks = atoi(argv[2]);
            me.faults = atoi(argv[3]);
            me.seed = strtoull(argv[4], NULL, 10);
        }
    return me.transport_name != NULL && me.ranks >= 2 && me.ranks <= MOST_RANKS && me.faults >= 1;
}

int main(int argc, char **argv)
{
    int processes;

    if (!is_set_up(argc, argv)) {
        fprintf(stderr, "usage: gpu-rank-faults gpu|nccl|peer RANKS FAULTS SEED\n");
        return 2;
    }
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &own_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &processes);
    NEED(processes != me.ranks + kills_before(me.faults - 1), "started with another number of processes");
    watch_signals();
    make_teams();
    const int first = first_fault();
    warm_up();
    if (first > 0)
        wait_for_turn();
    me.all = me.team[kills_before(first)];
    for (int n = first; n < me.faults; n++) {
        if (n > first && fault_number(n - 1).kind == KILLED)
            replace(n);
        suffer(n);
    }
    for (int n = 0; n < LAYERS; n++)
        free(me.wanted[n]);
    free(me.team);
    stage = "ending";
    fflush(NULL);
    return 0; /* MPI_Finalize would wait for those who were killed */
}
