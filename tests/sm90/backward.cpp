/* backward.cpp - kernels/sm90/backward.cu on emulator.h. */
#include "kernels/sm90/backward.cu"

extern "C" {
extern int64_t emulated_turns; /* launches of the kernel that differentiates; for tests */
int64_t emulated_turns;
}

bool emulated_backward(const void *kernel, void **arguments, int blocks, int threads, size_t shared_bytes);

bool emulated_backward(const void *kernel, void **arguments, int blocks, int threads, size_t shared_bytes)
{
    const hra_sm90_backward &a = *(const hra_sm90_backward *)arguments[0];
    const hra_sm90_pieces &p = *(const hra_sm90_pieces *)arguments[0];

    for (const variant &v : variants) {
        std::function<void()> run;
        if (kernel == v.kernel || kernel == v.unseen)
            run = [&] { ((void (*)(hra_sm90_backward))kernel)(a); };
        else if (kernel == v.delta || kernel == v.begin || kernel == v.end)
            run = [&] { ((void (*)(hra_sm90_pieces))kernel)(p); };
        else
            continue;
        emulated_turns += kernel == v.kernel;
        emulated::launch(run, blocks, threads, shared_bytes);
        return true;
    }
    return false;
}
