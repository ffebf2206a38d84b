/* pool.c - a pool of threads. Workers sleep on a condition between calls: a library is a guest. */
#include "kernels/cpu/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct hra_pool {
    pthread_mutex_t mutex; /* guards call, working and stop */
    pthread_cond_t begin;  /* call has changed, or stop */
    pthread_cond_t done;   /* working has become 0 */
    unsigned call;         /* counts calls of hra_pool_run */
    int working;           /* workers that are not yet done with this call */
    int stop;
    int started;       /* workers that run */
    pthread_t *worker; /* [started] */
    struct worker {
        struct hra_pool *pool;
        int thread;
    } * seat; /* [threads] */

    /* The present call; written before begin, read after. */
    void (*task)(void *state, int64_t i, int thread);
    void *state;
    int64_t tasks;
    atomic_llong next; /* first task that nobody has taken */
};

static void work(struct hra_pool *pool, int thread, struct hra_poll poll)
{
    for (;;) {
        const int64_t i = atomic_fetch_add(&pool->next, 1);
        if (i >= pool->tasks)
            return;
        pool->task(pool->state, i, thread);
        if (poll.poll != NULL)
            poll.poll(poll.state);
    }
}

static void *run_worker(void *argument)
{
    struct worker *self = argument;
    struct hra_pool *pool = self->pool;
    unsigned seen = 0;

    for (;;) {
        pthread_mutex_lock(&pool->mutex);
        while (pool->call == seen && !pool->stop)
            pthread_cond_wait(&pool->begin, &pool->mutex);
        seen = pool->call;
        const int stop = pool->stop;
        pthread_mutex_unlock(&pool->mutex);
        if (stop)
            return NULL;

        work(pool, self->thread, (struct hra_poll){NULL, NULL});

        pthread_mutex_lock(&pool->mutex);
        if (--pool->working == 0)
            pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->mutex);
    }
}

hra_status hra_pool_create(struct hra_pool **out, int threads)
{
    struct hra_pool *pool = NULL;

    HRA_TRY(hra_alloc((void **)&pool, 1, sizeof(*pool), "threads"));
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->begin, NULL);
    pthread_cond_init(&pool->done, NULL);
    hra_status status = hra_alloc((void **)&pool->worker, threads, sizeof(*pool->worker), "threads");
    if (status == HRA_OK)
        status = hra_alloc((void **)&pool->seat, threads, sizeof(*pool->seat), "threads");
    for (int i = 1; status == HRA_OK && i < threads; i++) {
        pool->seat[i] = (struct worker){pool, i};
        if (pthread_create(&pool->worker[i - 1], NULL, run_worker, &pool->seat[i]) != 0)
            status = HRA_FAIL(HRA_ERR_MEMORY, "threads: could not start thread %d of %d", i, threads);
        else
            pool->started = i;
    }
    if (status != HRA_OK) {
        hra_pool_destroy(pool);
        return status;
    }
    *out = pool;
    return HRA_OK;
}

void hra_pool_run(struct hra_pool *pool, int64_t tasks, void (*task)(void *state, int64_t i, int thread),
                  void *state, struct hra_poll poll)
{
    pool->task = task;
    pool->state = state;
    pool->tasks = tasks;
    atomic_store(&pool->next, 0);
    if (pool->started > 0 && tasks > 1) {
        pthread_mutex_lock(&pool->mutex);
        pool->call++;
        pool->working = pool->started;
        pthread_cond_broadcast(&pool->begin);
        pthread_mutex_unlock(&pool->mutex);
    }
    work(pool, 0, poll);
    if (pool->started > 0 && tasks > 1) {
        pthread_mutex_lock(&pool->mutex);
        while (pool->working > 0)
            pthread_cond_wait(&pool->done, &pool->mutex);
        pthread_mutex_unlock(&pool->mutex);
    }
}

void hra_pool_destroy(struct hra_pool *pool)
{
    if (pool == NULL)
        return;
    pthread_mutex_lock(&pool->mutex);
    pool->stop = 1;
    pthread_cond_broadcast(&pool->begin);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->started; i++)
        pthread_join(pool->worker[i], NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->begin);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->worker);
    free(pool->seat);
    free(pool);
}
