/* options.hpp - what the command line says. */
#ifndef MEGATRON_OPTIONS_HPP
#define MEGATRON_OPTIONS_HPP

#include "groups.hpp"

#include <cstdint>
#include <string>

struct options {
    grid_size grid;
    hra_backend_kind backend = HRA_BACKEND_CPU;
    hra_type type = HRA_F32; /* of activations; f32 on CPUs, bf16 on GPUs unless told */
    int64_t layers = 4, channels = 128, heads = 4;
    int64_t heads_kv = 0; /* 0: heads */
    int64_t hidden = 0;   /* of the MLP; 0: 4 channels */
    int64_t tokens = 1024;
    int64_t batch = 4; /* sequences of a step, over all data ranks */
    int64_t steps = 100, warmup = 10, seed = 1;
    int64_t threads = 0; /* 0: cores of the node / ranks there */
    double rate = 0.001, decay = 0.1;
    std::string text, json;
    std::string mask = "causal", order = "identity";
    bool check = false, help = false;

    int64_t dim() const /* channels of a head */
    {
        return channels / heads;
    }
    int64_t local_batch() const /* sequences of a data rank */
    {
        return batch / grid.data;
    }
};

/* Read the command line and check that what it says fits together and fits `ranks`. Throws wrong. */
options parse_options(int argc, char **argv, int ranks);

void print_help();

#endif
