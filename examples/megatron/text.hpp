/* text.hpp - the bytes that are learnt, and which of them a step sees. */
#ifndef MEGATRON_TEXT_HPP
#define MEGATRON_TEXT_HPP

#include "options.hpp"

#include <vector>

class text
{
  public:
    /* Rank 0 reads the file, and the others get it from there, so that they may run where it is not. Throws
     * wrong where it cannot be read or has too few bytes for a sequence. Collective over world. */
    text(const options &o, MPI_Comm world);

    int64_t count() const
    {
        return static_cast<int64_t>(bytes.size());
    }
    /* Where sequence `sequence` of the whole batch begins in step `step`; tokens + 1 bytes are there. It
     * depends on nothing else, so every grid sees the same batches. */
    const uint8_t *at(const options &o, int64_t step, int64_t sequence) const;

  private:
    std::vector<uint8_t> bytes;
};

/* The bytes of one step for the rows of these tokens, as model::run takes them. */
struct feed {
    std::vector<int32_t> input, target; /* [tokens][batch] */

    /* Of sequences sequence0 .. sequence0 + batch - 1. */
    feed(const text &t, const options &o, const std::vector<int64_t> &tokens, int64_t step, int64_t sequence0,
         int64_t batch);
};

#endif
