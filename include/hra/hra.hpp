/* hra.hpp - libhra from C++17: handles that give themselves back, exceptions, views that know their shape.
 * Needs nothing but hra.h, and adds no library of its own.
 *
 *     hra::comm comm = hra::comm::mpi(MPI_COMM_WORLD);            // with hra/mpi.h included, linked to libhra-mpi
 *     hra::mask mask(hra::domain(problem.tokens, problem.heads), "causal & window(1023,0)");
 *     hra::plan plan(comm, problem, mask);                        // once, for all layers and steps
 *     plan.forward(q, k, v, o, lse, workspace);                   // hra::view, std::vector, hra::host_memory
 *     plan.backward(q, k, v, o, lse, g, nullptr, dq, dk, dv, workspace);
 *     ...
 *     comm.close();
 *
 * What each call does, its shapes, units and who waits for whom is said in hra.h and not repeated here: a member calls
 * the function of hra.h that has its name. Structs and constants are those of hra.h; hra::problem and its like are the
 * same structs with their size set. Functions of hra.h that need no handle and cannot fail are called as they are.
 *
 * A failure is thrown as hra::error. Where a call of hra.h is collective, so is the member, and an exception on one rank
 * means for the others what the status means there: after HRA_ERR_ARG nothing was sent and they wait for the call to be
 * repeated.
 *
 * Handles are moved and never copied; one that was moved from holds NULL. get() lends the handle to calls in C, release()
 * and adopt() give and take it. */
#ifndef HRA_HRA_HPP
#define HRA_HRA_HPP

#include <hra/hra.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace hra
{

/* ---- Errors ---------------------------------------------------------------------------------- */

/* What a call threw: what() is the name of the status, a colon and the sentence. */
class HRA_API error : public std::runtime_error
{
  public:
    /* As check() makes it from hra_last_error(). */
    error(hra_status status, const std::string &sentence)
        : std::runtime_error(std::string(hra_status_name(status)) + ": " + sentence), status_(status)
    {
    }

    /* Never HRA_OK. */
    hra_status status() const noexcept
    {
        return status_;
    }

    /* What was wrong, with the values, as hra_last_error() has it. */
    const char *sentence() const noexcept
    {
        return what() + std::strlen(hra_status_name(status_)) + 2;
    }

  private:
    hra_status status_;
};

/* Throw where a call of hra.h, just made by this thread, failed. */
inline void check(hra_status status)
{
    if (status != HRA_OK)
        throw error(status, hra_last_error());
}

/* ---- Structs with their size set ------------------------------------------------------------- */

/* hra_domain. */
struct domain : hra_domain {
    /* All fields but size are 0, to be set one by one. */
    domain() : hra_domain{}
    {
        size = sizeof(hra_domain);
    }

    /* Tokens without a grid. */
    explicit domain(std::int64_t all_tokens, int all_heads = 1, int sequences = 1) : domain()
    {
        tokens = all_tokens;
        heads = all_heads;
        batch = sequences;
    }

    /* Tokens on a grid of two or three axes, slowest first: hra::domain({frames, rows, columns}, heads). */
    explicit domain(std::initializer_list<std::int64_t> extents, int all_heads = 1, int sequences = 1)
        : domain()
    {
        if (extents.size() > 3)
            throw error(HRA_ERR_ARG, "hra::domain: the grid has " + std::to_string(extents.size()) +
                                         " axes, it must have two or three");
        std::copy(extents.begin(), extents.end(), grid);
        heads = all_heads;
        batch = sequences;
    }
};

/* hra_problem; fields that are left 0 take their defaults. */
struct problem : hra_problem {
    problem() : hra_problem{}
    {
        size = sizeof(hra_problem);
    }
};

/* hra_machine; all that has no default is to be set. */
struct machine : hra_machine {
    machine() : hra_machine{}
    {
        size = sizeof(hra_machine);
    }
};

/* hra_options. */
struct options : hra_options {
    options() : hra_options{}
    {
        size = sizeof(hra_options);
    }
};

/* hra_comm_options. */
struct comm_options : hra_comm_options {
    comm_options() : hra_comm_options{}
    {
        size = sizeof(hra_comm_options);
    }
};

/* ---- Views ------------------------------------------------------------------------------------- */

/* So many objects in a row, owned by somebody else. */
template <typename T> class span
{
  public:
    /* None. */
    constexpr span() noexcept = default;
    /* size objects at data. */
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size)
    {
    }

    /* As a vector has them. */
    constexpr T *data() const noexcept
    {
        return data_;
    }
    constexpr std::size_t size() const noexcept
    {
        return size_;
    }
    constexpr T *begin() const noexcept
    {
        return data_;
    }
    constexpr T *end() const noexcept
    {
        return data_ + size_;
    }
    constexpr T &operator[](std::size_t i) const noexcept
    {
        return data_[i];
    }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/* Of a tensor [batch][rows][heads][dim]. */
struct shape {
    std::int64_t batch = 0; /* sequences */
    std::int64_t rows = 0;  /* tokens in one: those of a rank, or all */
    std::int64_t heads = 0; /* query heads, or key and value heads */
    std::int64_t dim = 0;   /* channels of a head */

    /* In all four. */
    friend bool operator==(const shape &a, const shape &b) noexcept
    {
        return a.batch == b.batch && a.rows == b.rows && a.heads == b.heads && a.dim == b.dim;
    }
    friend bool operator!=(const shape &a, const shape &b) noexcept
    {
        return !(a == b);
    }

    /* Numbers in the tensor. */
    std::size_t count() const noexcept
    {
        return static_cast<std::size_t>(batch * rows * heads * dim);
    }
};

/* A tensor [batch][rows][heads][dim] in memory of the caller's, the channels contiguous, strides in elements, as
 * hra_tensor with a shape and a type. T is const where the tensor is only read; bf16 and f16 may be any type of two bytes.
 * Only operator() reads memory, so the memory may be a device's. */
template <typename T> class view
{
  public:
    /* No tensor. */
    constexpr view() noexcept = default;
    /* Any strides. */
    constexpr view(T *data, const hra::shape &shape, std::int64_t stride_batch, std::int64_t stride_row,
                   std::int64_t stride_head) noexcept
        : data_(data), shape_(shape), stride_batch_(stride_batch), stride_row_(stride_row),
          stride_head_(stride_head)
    {
    }

    /* The same tensor, only read, where T is const. */
    template <typename U, typename = std::enable_if_t<std::is_same_v<const U, T> && !std::is_const_v<U>>>
    constexpr view(const view<U> &v) noexcept
        : view(v.data(), v.shape(), v.stride_batch(), v.stride_row(), v.stride_head())
    {
    }

    /* In memory [batch][rows][heads][dim]. */
    static constexpr view batch_first(T *data, const hra::shape &shape) noexcept
    {
        return {data, shape, shape.rows * shape.heads * shape.dim, shape.heads * shape.dim, shape.dim};
    }

    /* In memory [rows][batch][heads][dim], as Megatron has it. */
    static constexpr view rows_first(T *data, const hra::shape &shape) noexcept
    {
        return {data, shape, shape.heads * shape.dim, shape.batch * shape.heads * shape.dim, shape.dim};
    }

    /* Heads first .. first + count - 1 of the same memory: q, k and v out of one product, say. */
    constexpr view heads(std::int64_t first, std::int64_t count) const noexcept
    {
        return {data_ + first * stride_head_,
                {shape_.batch, shape_.rows, count, shape_.dim},
                stride_batch_,
                stride_row_,
                stride_head_};
    }

    /* One number, in memory of the host. */
    constexpr T &operator()(std::int64_t batch, std::int64_t row, std::int64_t head,
                            std::int64_t channel) const noexcept
    {
        return data_[batch * stride_batch_ + row * stride_row_ + head * stride_head_ + channel];
    }

    /* What it was made of. */
    constexpr T *data() const noexcept
    {
        return data_;
    }
    constexpr const hra::shape &shape() const noexcept
    {
        return shape_;
    }
    constexpr std::int64_t stride_batch() const noexcept
    {
        return stride_batch_;
    }
    constexpr std::int64_t stride_row() const noexcept
    {
        return stride_row_;
    }
    constexpr std::int64_t stride_head() const noexcept
    {
        return stride_head_;
    }

  private:
    T *data_ = nullptr;
    hra::shape shape_;
    std::int64_t stride_batch_ = 0, stride_row_ = 0, stride_head_ = 0;
};

/* A tensor that a call reads: any view. A bare hra_tensor is taken too, but its shape and type are not known and so not
 * compared with the plan's. */
class const_tensor
{
  public:
    /* With the view's shape and type, or without. */
    template <typename T>
    const_tensor(const view<T> &v) noexcept
        : tensor_{const_cast<std::remove_const_t<T> *>(v.data()), v.stride_batch(), v.stride_row(),
                  v.stride_head()},
          shape_(v.shape()), element_bytes_(sizeof(T))
    {
    }
    const_tensor(const hra_tensor &t) noexcept : tensor_(t)
    {
    }

    /* For calls in C. */
    const hra_tensor &get() const noexcept
    {
        return tensor_;
    }
    /* All 0 where it is not known. */
    const hra::shape &shape() const noexcept
    {
        return shape_;
    }
    /* Of one number; 0: neither this nor the shape is known. */
    std::size_t element_bytes() const noexcept
    {
        return element_bytes_;
    }

  private:
    hra_tensor tensor_;
    hra::shape shape_;
    std::size_t element_bytes_ = 0;
};

/* A tensor that a call writes. */
class tensor : public const_tensor
{
  public:
    /* With the view's shape and type, or without. */
    template <typename T, typename = std::enable_if_t<!std::is_const_v<T>>>
    tensor(const view<T> &v) noexcept : const_tensor(v)
    {
    }
    tensor(const hra_tensor &t) noexcept : const_tensor(t)
    {
    }
};

/* Memory that a call reads: nullptr, a container such as std::vector, or a pointer and bytes. */
class const_memory
{
  protected:
    /* What a container holds; no type where C is none, or is memory itself. */
    template <typename C>
    using element_of =
        std::enable_if_t<!std::is_base_of_v<const_memory, std::remove_cv_t<std::remove_reference_t<C>>>,
                         std::remove_pointer_t<decltype(std::data(std::declval<C &>()))>>;

  public:
    /* Of nullptr: none. */
    const_memory(std::nullptr_t = nullptr) noexcept
    {
    }
    const_memory(const void *data, std::size_t bytes) noexcept : data_(data), bytes_(bytes)
    {
    }
    template <typename C, typename T = element_of<const C>>
    const_memory(const C &container) noexcept
        : data_(std::data(container)), bytes_(std::size(container) * sizeof(T)), element_bytes_(sizeof(T))
    {
    }

    /* Where it is, and how much. */
    const void *data() const noexcept
    {
        return data_;
    }
    std::size_t bytes() const noexcept
    {
        return bytes_;
    }
    /* Of one object in the container; 0 for a pointer and bytes. */
    std::size_t element_bytes() const noexcept
    {
        return element_bytes_;
    }

  private:
    const void *data_ = nullptr;
    std::size_t bytes_ = 0, element_bytes_ = 0;
};

/* Memory that a call writes. */
class memory : public const_memory
{
  public:
    /* Of nullptr: none. */
    memory(std::nullptr_t = nullptr) noexcept
    {
    }
    memory(void *data, std::size_t bytes) noexcept : const_memory(data, bytes)
    {
    }
    template <typename C, typename = std::enable_if_t<!std::is_const_v<element_of<C>>>>
    memory(C &&container) noexcept : const_memory(container)
    {
    }

    /* Where it is. */
    void *data() const noexcept
    {
        return const_cast<void *>(const_memory::data());
    }
};

/* Memory of the host, aligned as workspace and saved want it on the CPU. */
class host_memory
{
  public:
    /* None. */
    host_memory() noexcept = default;
    /* So many bytes; throws std::bad_alloc. */
    explicit host_memory(std::size_t bytes)
        : data_(static_cast<std::byte *>(::operator new (bytes, std::align_val_t{alignment}))), size_(bytes)
    {
    }

    /* As a vector of bytes has them. */
    std::byte *data() noexcept
    {
        return data_.get();
    }
    const std::byte *data() const noexcept
    {
        return data_.get();
    }
    std::size_t size() const noexcept
    {
        return size_;
    }

  private:
    static constexpr std::size_t alignment = 64;
    struct give_back {
        void operator()(std::byte *data) const noexcept
        {
            ::operator delete (data, std::align_val_t{alignment});
        }
    };
    std::unique_ptr<std::byte, give_back> data_;
    std::size_t size_ = 0;
};

/* Numbers from one type to another: hra_convert. */
inline void convert(void *out, hra_type out_type, const void *in, hra_type in_type, std::int64_t count)
{
    check(hra_convert(out, out_type, in, in_type, count));
}

/* ---- Handles ----------------------------------------------------------------------------------- */

/* For this header alone. */
namespace detail
{

/* What a function that creates has made; throws where it failed. */
template <typename T, typename... Parameters, typename... Arguments>
T *made(hra_status (*create)(T **, Parameters...), Arguments &&...arguments)
{
    T *out = nullptr;
    check(create(&out, std::forward<Arguments>(arguments)...));
    return out;
}

/* A list that a function of hra.h writes up to a capacity and counts in full. Asked once, and once more where the first
 * guess was too small: such a function may compile another rank's plan each time. */
template <typename T, typename Ask> std::vector<T> listed(Ask ask)
{
    std::vector<T> all(256);
    std::int64_t count = 0;
    check(ask(all.data(), static_cast<std::int64_t>(all.size()), &count));
    if (count > static_cast<std::int64_t>(all.size())) {
        all.resize(static_cast<std::size_t>(count));
        check(ask(all.data(), count, &count));
    }
    all.resize(static_cast<std::size_t>(count));
    return all;
}

} // namespace detail

/* The sole owner of an object of the library, or of none. */
template <typename T, void (*Destroy)(T *)> class handle
{
  public:
    /* Taken from `other`, which is left with none; what was held before is destroyed. */
    handle(handle &&other) noexcept : handle_(other.release())
    {
    }
    handle &operator=(handle &&other) noexcept
    {
        T *taken = other.release();
        reset();
        handle_ = taken;
        return *this;
    }
    ~handle()
    {
        Destroy(handle_);
    }

    /* The handle, still owned here; NULL after a move. */
    T *get() const noexcept
    {
        return handle_;
    }
    /* The handle, now the caller's. */
    T *release() noexcept
    {
        return std::exchange(handle_, nullptr);
    }
    /* Destroy the object before its time. */
    void reset() noexcept
    {
        Destroy(release());
    }

  protected:
    /* Owner of an object that was made, or of NULL. */
    explicit handle(T *owned) noexcept : handle_(owned)
    {
    }

  private:
    T *handle_;
};

/* ---- Orders ------------------------------------------------------------------------------------ */

/* hra_order. */
class order : public handle<hra_order, hra_order_destroy>
{
  public:
    /* By name: hra_order_create. */
    order(const hra_domain &domain, const std::string &name)
        : handle(detail::made(hra_order_create, &domain, name.c_str()))
    {
    }

    /* slot_to_token has one token for each token of the domain. */
    static order permutation(const hra_domain &domain, const std::vector<std::int64_t> &slot_to_token)
    {
        std::uint64_t tokens = static_cast<std::uint64_t>(domain.tokens);
        if (tokens == 0) /* else the library compares it with the grid */
            tokens = static_cast<std::uint64_t>(domain.grid[0]) * static_cast<std::uint64_t>(domain.grid[1]) *
                     static_cast<std::uint64_t>(std::max<std::int64_t>(1, domain.grid[2]));
        if (slot_to_token.size() != tokens)
            throw error(HRA_ERR_ARG, "hra::order::permutation: " + std::to_string(slot_to_token.size()) +
                                         " slots are given, the domain has " + std::to_string(tokens) +
                                         " tokens");
        return adopt(detail::made(hra_order_permutation, &domain, slot_to_token.data()));
    }

    /* Become the owner of an order that was made in C. */
    static order adopt(hra_order *owned) noexcept
    {
        return order(owned);
    }

    /* Owned by the order. */
    span<const std::int64_t> slot_to_token() const
    {
        return {hra_order_slot_to_token(get()), static_cast<std::size_t>(info().tokens)};
    }
    span<const std::int64_t> token_to_slot() const
    {
        return {hra_order_token_to_slot(get()), static_cast<std::size_t>(info().tokens)};
    }

    /* Its texts are owned by the order. */
    hra_order_info info() const
    {
        hra_order_info out{};
        out.size = sizeof(out);
        check(hra_order_get_info(get(), &out));
        return out;
    }

  private:
    explicit order(hra_order *owned) noexcept : handle(owned)
    {
    }
};

/* ---- Masks --------------------------------------------------------------------------------------- */

/* hra_mask. Masks are combined as in texts: a & b, a | b, !a. */
class mask : public handle<hra_mask, hra_mask_destroy>
{
  public:
    /* From its text: hra_mask_parse. */
    mask(const hra_domain &domain, const std::string &text)
        : handle(detail::made(hra_mask_parse, &domain, nullptr, text.c_str()))
    {
    }
    /* The same, where slots(M) in the text reads slots of `order`. */
    mask(const hra_domain &domain, const hra::order &order, const std::string &text)
        : handle(detail::made(hra_mask_parse, &domain, order.get(), text.c_str()))
    {
    }

    /* Become the owner of a mask that was made in C. */
    static mask adopt(hra_mask *owned) noexcept
    {
        return mask(owned);
    }

    /* Without text, each as the function hra_mask_... of its name. Vectors have one number for each axis of the grid. */
    static mask full(const hra_domain &domain)
    {
        return adopt(detail::made(hra_mask_full, &domain));
    }
    static mask causal(const hra_domain &domain)
    {
        return adopt(detail::made(hra_mask_causal, &domain));
    }
    static mask window(const hra_domain &domain, std::int64_t left, std::int64_t right)
    {
        return adopt(detail::made(hra_mask_window, &domain, left, right));
    }
    static mask grid(const hra_domain &domain, const std::vector<std::int64_t> &radius)
    {
        check_axes(domain, "hra::mask::grid", "radii", radius);
        return adopt(detail::made(hra_mask_grid, &domain, radius.data()));
    }
    static mask neighbourhood(const hra_domain &domain, const std::vector<std::int64_t> &extent)
    {
        check_axes(domain, "hra::mask::neighbourhood", "extents", extent);
        return adopt(detail::made(hra_mask_neighbourhood, &domain, extent.data(), nullptr));
    }
    static mask neighbourhood(const hra_domain &domain, const std::vector<std::int64_t> &extent,
                              const std::vector<std::int64_t> &stride)
    {
        check_axes(domain, "hra::mask::neighbourhood", "extents", extent);
        check_axes(domain, "hra::mask::neighbourhood", "strides", stride);
        return adopt(detail::made(hra_mask_neighbourhood, &domain, extent.data(), stride.data()));
    }

    /* The lengths of the documents; they add up to the tokens. */
    static mask docs(const hra_domain &domain, const std::vector<std::int64_t> &length)
    {
        return adopt(detail::made(hra_mask_docs, &domain, length.data(), signed_size(length)));
    }

    /* As the functions hra_mask_... of their names. */
    static mask dilated(const hra_domain &domain, std::int64_t segment, std::int64_t rate,
                        std::int64_t offset = 0, hra_dilation mode = HRA_DILATED_KEYS)
    {
        return adopt(detail::made(hra_mask_dilated, &domain, segment, rate, offset, mode));
    }
    static mask global(const hra_domain &domain, std::int64_t count)
    {
        return adopt(detail::made(hra_mask_global, &domain, count));
    }

    /* query_block[n] attends to key_block[n]. */
    static mask blocks(const hra_domain &domain, std::int64_t block_tokens,
                       const std::vector<std::int64_t> &query_block,
                       const std::vector<std::int64_t> &key_block)
    {
        if (query_block.size() != key_block.size())
            throw error(HRA_ERR_ARG, "hra::mask::blocks: " + std::to_string(query_block.size()) +
                                         " query blocks are given and " + std::to_string(key_block.size()) +
                                         " key blocks");
        return adopt(detail::made(hra_mask_blocks, &domain, block_tokens, query_block.data(),
                                  key_block.data(), signed_size(query_block)));
    }

    /* Blocks by rule, as the functions hra_mask_... of their names. */
    static mask local_blocks(const hra_domain &domain, std::int64_t block_tokens, std::int64_t width)
    {
        return adopt(detail::made(hra_mask_local_blocks, &domain, block_tokens, width));
    }
    static mask strided_blocks(const hra_domain &domain, std::int64_t block_tokens, std::int64_t stride,
                               std::int64_t width)
    {
        return adopt(detail::made(hra_mask_strided_blocks, &domain, block_tokens, stride, width));
    }
    static mask global_blocks(const hra_domain &domain, std::int64_t block_tokens, std::int64_t global,
                              std::int64_t width)
    {
        return adopt(detail::made(hra_mask_global_blocks, &domain, block_tokens, global, width));
    }
    static mask random_blocks(const hra_domain &domain, std::int64_t block_tokens, std::int64_t count,
                              std::uint64_t seed)
    {
        return adopt(detail::made(hra_mask_random_blocks, &domain, block_tokens, count, seed));
    }
    static mask hierarchical_blocks(const hra_domain &domain, std::int64_t block_tokens, std::int64_t width,
                                    int levels)
    {
        return adopt(detail::made(hra_mask_hierarchical_blocks, &domain, block_tokens, width, levels));
    }

    /* `of` reading slots of `order`. */
    static mask slots(const hra::order &order, const mask &of)
    {
        return adopt(detail::made(hra_mask_slots, order.get(), of.get()));
    }

    /* hra_mask_not, _and and _or. */
    friend mask operator!(const mask &a)
    {
        return adopt(detail::made(hra_mask_not, a.get()));
    }
    friend mask operator&(const mask &a, const mask &b)
    {
        return adopt(detail::made(hra_mask_and, a.get(), b.get()));
    }
    friend mask operator|(const mask &a, const mask &b)
    {
        return adopt(detail::made(hra_mask_or, a.get(), b.get()));
    }

    /* A mask in a list; it is not copied. */
    struct ref {
        /* Any mask, named or not. */
        ref(const mask &named) noexcept : handle(named.get())
        {
        }
        /* Still owned by that mask. */
        const hra_mask *handle;
    };
    /* A mask for heads, or sequences, first .. last. */
    struct range {
        /* Of the heads of the whole model, or of the batch; both are in it. */
        int first;
        int last;
        /* What holds there. */
        ref mask;
    };
    /* hra::mask::heads({{0, 3, causal}, {4, 7, window}}) */
    static mask heads(const std::vector<range> &ranges)
    {
        return by_ranges(hra_mask_heads, ranges);
    }
    static mask batches(const std::vector<range> &ranges)
    {
        return by_ranges(hra_mask_batches, ranges);
    }

    /* All branches, their counts added: hra::mask::mix({near, far}). */
    static mask mix(const std::vector<ref> &branches)
    {
        std::vector<const hra_mask *> masks;
        for (const ref &branch : branches)
            masks.push_back(branch.handle);
        return adopt(detail::made(hra_mask_mix, masks.data(), int_size("hra::mask::mix", masks.size())));
    }

    /* How often `query` attends to `key`. */
    int count(std::int64_t batch, std::int64_t head, std::int64_t query, std::int64_t key) const noexcept
    {
        return hra_mask_count(get(), batch, head, query, key);
    }
    /* count(...) > 0 */
    bool allows(std::int64_t batch, std::int64_t head, std::int64_t query, std::int64_t key) const noexcept
    {
        return hra_mask_allows(get(), batch, head, query, key) != 0;
    }

    /* The whole text of hra_mask_print. */
    std::string text() const
    {
        std::string out(hra_mask_print(get(), nullptr, 0), '\0');
        hra_mask_print(get(), out.data(), out.size() + 1);
        return out;
    }

  private:
    explicit mask(hra_mask *owned) noexcept : handle(owned)
    {
    }

    static std::int64_t signed_size(const std::vector<std::int64_t> &all) noexcept
    {
        return static_cast<std::int64_t>(all.size());
    }

    static int int_size(const char *call, std::size_t size)
    {
        if (size > 1 << 30)
            throw error(HRA_ERR_ARG, std::string(call) + ": " + std::to_string(size) + " masks are given");
        return static_cast<int>(size);
    }

    /* The library reads as many numbers as the grid has axes, and says itself where there is no grid. */
    static void check_axes(const hra_domain &domain, const char *call, const char *what,
                           const std::vector<std::int64_t> &all)
    {
        const auto axes = static_cast<std::size_t>(3 - std::count(domain.grid, domain.grid + 3, 0));
        if (axes > 0 && all.size() != axes)
            throw error(HRA_ERR_ARG, std::string(call) + ": " + std::to_string(all.size()) + " " + what +
                                         " are given, the grid has " + std::to_string(axes) + " axes");
    }

    static mask by_ranges(hra_status (*create)(hra_mask **, const int *, const int *, const hra_mask *const *,
                                               int),
                          const std::vector<range> &ranges)
    {
        std::vector<int> first, last;
        std::vector<const hra_mask *> masks;
        for (const range &r : ranges) {
            first.push_back(r.first);
            last.push_back(r.last);
            masks.push_back(r.mask.handle);
        }
        return adopt(detail::made(create, first.data(), last.data(), masks.data(),
                                  int_size("hra::mask::heads or batches", masks.size())));
    }
};

/* ---- Communicators --------------------------------------------------------------------------------- */

/* What hra_comm_get_unique_id makes, to be handed to all ranks. */
using unique_id = std::array<unsigned char, HRA_UNIQUE_ID_BYTES>;

/* hra_comm_get_unique_id. */
inline unique_id get_unique_id()
{
    unique_id out;
    check(hra_comm_get_unique_id(out.data()));
    return out;
}

/* hra_comm. Plans and hops made on it must be gone before it goes.
 *
 * Destroying a communicator is collective and can fail, and a destructor can say neither. So where a program is done with
 * one in good order it calls close() on all ranks, which throws. The destructor of one that was not closed does this:
 *     - after a failure (status()) it destroys it, which is local then;
 *     - while an exception unwinds the stack on this rank it leaves the communicator as it is, and its memory to the end of
 *       the process. The other ranks may know nothing of the exception and be in another call: waiting for them would keep
 *       what() from whoever catches it until the time limit has passed. A program that goes on after such an exception
 *       catches it where the communicator still lives, and closes that;
 *     - else it does as close(), waits for the other ranks up to the time limit, and drops what went wrong. That plans still
 *       live is a mistake of the program, which an assertion shows; the communicator then stays. */
class comm
{
  public:
    /* One rank, this process. */
    static comm self()
    {
        return adopt(detail::made(hra_comm_create_self));
    }
    /* A model of `ranks` ranks seen from `rank`: plans on it are asked and not executed. */
    static comm model(int rank, int ranks)
    {
        return adopt(detail::made(hra_comm_create_model, rank, ranks));
    }
    /* Ranks that have been handed `id`. */
    static comm unique(int rank, int ranks, const unique_id &id,
                       const hra_comm_options &options = hra::comm_options())
    {
        return adopt(detail::made(hra_comm_create_unique, rank, ranks, id.data(), &options));
    }
    /* The ranks of an MPI_Comm: hra_comm_create_mpi. The program includes hra/mpi.h, before or after this header: the
     * function is looked up where this is used. It links libhra-mpi. */
    template <typename Parent>
    static comm mpi(Parent parent, const hra_comm_options &options = hra::comm_options())
    {
        hra_comm *out = nullptr;
        check(hra_comm_create_mpi(&out, parent, &options));
        return adopt(out);
    }
    /* The ranks of an ncclComm_t: hra_comm_create_nccl. The program includes hra/nccl.h, before or after this header. */
    template <typename Parent>
    static comm nccl(Parent parent, const hra_comm_options &options = hra::comm_options())
    {
        hra_comm *out = nullptr;
        check(hra_comm_create_nccl(&out, parent, &options));
        return adopt(out);
    }
    /* Become the owner of a communicator that was made in C. */
    static comm adopt(hra_comm *owned) noexcept
    {
        return comm(owned);
    }

    /* `other` is left with none. */
    comm(comm &&other) noexcept : comm(other.release())
    {
    }
    /* What was held before goes as in the destructor. */
    comm &operator=(comm &&other) noexcept
    {
        hra_comm *taken = other.release();
        leave();
        handle_ = taken;
        exceptions_ = std::uncaught_exceptions();
        return *this;
    }
    ~comm()
    {
        leave();
    }

    /* hra_comm_destroy. Collective; throws. With HRA_ERR_STATE, while plans live, nothing has changed; after any other
     * failure the handle is gone too. */
    void close()
    {
        const hra_status status = hra_comm_destroy(handle_);
        if (status != HRA_ERR_STATE)
            handle_ = nullptr;
        check(status);
    }

    /* The handle, still owned here; NULL after a move and after close(). */
    hra_comm *get() const noexcept
    {
        return handle_;
    }
    /* The handle, now the caller's. */
    hra_comm *release() noexcept
    {
        return std::exchange(handle_, nullptr);
    }

    /* As the functions hra_comm_... of their names. */
    int rank() const noexcept
    {
        return hra_comm_rank(handle_);
    }
    int ranks() const noexcept
    {
        return hra_comm_ranks(handle_);
    }
    /* hra_comm_get_status; does not throw. */
    hra_status status() const noexcept
    {
        return hra_comm_get_status(handle_);
    }
    /* hra_comm_wait. */
    void wait(void *stream = nullptr)
    {
        check(hra_comm_wait(handle_, stream));
    }

  private:
    explicit comm(hra_comm *owned) noexcept : handle_(owned)
    {
    }

    void leave() noexcept
    {
        hra_comm *owned = release();
        const bool unwinds = std::uncaught_exceptions() > exceptions_;
        if (owned == nullptr ||
            (unwinds && hra_comm_ranks(owned) > 1 && hra_comm_get_status(owned) == HRA_OK))
            return;
        const hra_status status = hra_comm_destroy(owned);
        assert(status != HRA_ERR_STATE && "plans of a hra::comm must be gone before it goes");
        static_cast<void>(status);
    }

    hra_comm *handle_;
    int exceptions_ = std::uncaught_exceptions(); /* under way when the handle came here */
};

/* ---- Hops -------------------------------------------------------------------------------------------- */

/* hra_hops. */
class hops : public handle<hra_hops, hra_hops_destroy>
{
  public:
    /* hra_hops_create. Collective. */
    hops(comm &comm, std::size_t bytes, int count)
        : handle(detail::made(hra_hops_create, comm.get(), bytes, count))
    {
    }

    /* Become the owner of hops that were made in C. */
    static hops adopt(hra_hops *owned) noexcept
    {
        return hops(owned);
    }

    /* As the functions hra_hops_... of their names. */
    void run(void *stream = nullptr)
    {
        hra::check(hra_hops_run(get(), stream));
    }
    void check()
    {
        hra::check(hra_hops_check(get()));
    }

  private:
    explicit hops(hra_hops *owned) noexcept : handle(owned)
    {
    }
};

/* ---- Forecasts --------------------------------------------------------------------------------------- */

/* hra_forecast, which plan::forecast makes. */
class forecast : public handle<hra_forecast, hra_forecast_destroy>
{
  public:
    /* Become the owner of a forecast that was made in C. */
    static forecast adopt(hra_forecast *owned) noexcept
    {
        return forecast(owned);
    }

    /* Of all ranks, or of one. */
    hra_forecast_info info(int rank = -1) const
    {
        hra_forecast_info out{};
        out.size = sizeof(out);
        hra::check(hra_forecast_get_info(get(), rank, &out));
        return out;
    }

    /* hra_forecast_spans, all of them. */
    std::vector<hra_span> spans(int rank) const
    {
        return detail::listed<hra_span>([&](hra_span *out, std::int64_t capacity, std::int64_t *count) {
            return hra_forecast_spans(get(), rank, out, capacity, count);
        });
    }

  private:
    explicit forecast(hra_forecast *owned) noexcept : handle(owned)
    {
    }
};

/* ---- Traces ------------------------------------------------------------------------------------------ */

/* hra_trace, which plan::trace makes. */
class trace : public handle<hra_trace, hra_trace_destroy>
{
  public:
    /* Become the owner of a trace that was made in C. */
    static trace adopt(hra_trace *owned) noexcept
    {
        return trace(owned);
    }

    /* hra_trace_spans, all of them. */
    std::vector<hra_span> spans(hra_pass pass) const
    {
        return detail::listed<hra_span>([&](hra_span *out, std::int64_t capacity, std::int64_t *count) {
            return hra_trace_spans(get(), pass, out, capacity, count);
        });
    }

  private:
    explicit trace(hra_trace *owned) noexcept : handle(owned)
    {
    }
};

/* ---- Plans ------------------------------------------------------------------------------------------- */

/* hra_plan. Shapes and sizes of what a call is given are compared with the plan's first, on this rank alone: a difference
 * is HRA_ERR_ARG, and nothing was sent. */
class plan : public handle<hra_plan, hra_plan_destroy>
{
  public:
    /* hra_plan_create in the order of the tokens. Collective. */
    plan(comm &comm, const hra_problem &problem, const hra::mask &mask,
         const hra_options &chosen = hra::options())
        : plan(detail::made(hra_plan_create, comm.get(), &problem, nullptr, mask.get(), &chosen), comm,
               problem)
    {
    }
    /* The same in another order. */
    plan(comm &comm, const hra_problem &problem, const hra::order &order, const hra::mask &mask,
         const hra_options &chosen = hra::options())
        : plan(detail::made(hra_plan_create, comm.get(), &problem, order.get(), mask.get(), &chosen), comm,
               problem)
    {
    }

    /* Become the owner of a plan that was made in C, on this communicator, of this problem. */
    static plan adopt(hra_plan *owned, const comm &comm, const hra_problem &problem)
    {
        return plan(owned, comm, problem);
    }

    /* Its texts are owned by the library. */
    hra_plan_info info() const
    {
        hra_plan_info out{};
        out.size = sizeof(out);
        hra::check(hra_plan_get_info(get(), &out));
        return out;
    }

    /* The rank that made it, whose the rows below are where no rank is named. */
    int rank() const noexcept
    {
        return rank_;
    }
    std::int64_t rows() const noexcept
    {
        return rows_;
    }
    /* Throws where there is no such rank. */
    std::int64_t rows(int rank) const
    {
        hra::check(hra_plan_row_index(get(), rank, nullptr, nullptr));
        return hra_plan_rows(get(), rank);
    }

    /* What forward and backward take on this rank; dq, dk and dv as q, k and v. */
    shape q_shape() const noexcept
    {
        return {batch_, rows_, heads_, dim_};
    }
    shape k_shape() const noexcept
    {
        return {batch_, rows_, heads_kv_, dim_};
    }
    shape v_shape() const noexcept
    {
        return {batch_, rows_, heads_kv_, dim_v_};
    }
    shape o_shape() const noexcept
    {
        return {batch_, rows_, heads_, dim_v_};
    }
    /* Numbers in lse and dlse, of hra_type_sums(type). */
    std::size_t lse_count() const noexcept
    {
        return static_cast<std::size_t>(batch_ * heads_ * rows_);
    }

    /* The slot, and the token, of each row: hra_plan_row_index. */
    std::vector<std::int64_t> row_slots() const
    {
        return row_slots(rank_);
    }
    std::vector<std::int64_t> row_slots(int rank) const
    {
        std::vector<std::int64_t> out(static_cast<std::size_t>(rows(rank)));
        hra::check(hra_plan_row_index(get(), rank, out.data(), nullptr));
        return out;
    }
    std::vector<std::int64_t> row_tokens() const
    {
        return row_tokens(rank_);
    }
    std::vector<std::int64_t> row_tokens(int rank) const
    {
        std::vector<std::int64_t> out(static_cast<std::size_t>(rows(rank)));
        hra::check(hra_plan_row_index(get(), rank, nullptr, out.data()));
        return out;
    }

    /* Owned by the plan. */
    span<const hra_piece> pieces() const
    {
        const hra_piece *out = nullptr;
        int count = 0;
        hra::check(hra_plan_pieces(get(), &out, &count));
        return {out, static_cast<std::size_t>(count)};
    }

    /* All of a list, as the functions hra_plan_... of their names. */
    std::vector<hra_plan_tile> tiles(int rank, int batch, int head)
    {
        return detail::listed<hra_plan_tile>(
            [&](hra_plan_tile *out, std::int64_t capacity, std::int64_t *count) {
                return hra_plan_tiles(get(), rank, batch, head, out, capacity, count);
            });
    }
    std::vector<hra_plan_move> moves(int rank, hra_pass pass)
    {
        return detail::listed<hra_plan_move>(
            [&](hra_plan_move *out, std::int64_t capacity, std::int64_t *count) {
                return hra_plan_moves(get(), rank, pass, out, capacity, count);
            });
    }
    std::vector<hra_plan_run> runs(int rank, hra_pass pass)
    {
        return detail::listed<hra_plan_run>(
            [&](hra_plan_run *out, std::int64_t capacity, std::int64_t *count) {
                return hra_plan_runs(get(), rank, pass, out, capacity, count);
            });
    }

    /* hra_forecast_create. */
    hra::forecast forecast(const hra_machine &machine, hra_pass pass, int watched = 0) const
    {
        return hra::forecast::adopt(detail::made(hra_forecast_create, get(), &machine, pass, watched));
    }

    /* hra_trace_create: while it lives, what this plan executes is recorded. */
    hra::trace trace()
    {
        return hra::trace::adopt(detail::made(hra_trace_create, get()));
    }

    /* hra_forward. Collective. lse may be nullptr; it holds lse_count() numbers. */
    void forward(const const_tensor &q, const const_tensor &k, const const_tensor &v, const tensor &o,
                 const memory &lse, const memory &workspace, const memory &saved = nullptr,
                 void *stream = nullptr)
    {
        const char *const call = "hra::plan::forward";
        compare(call, "q", q, q_shape());
        compare(call, "k", k, k_shape());
        compare(call, "v", v, v_shape());
        compare(call, "o", o, o_shape());
        compare_sums(call, "lse", lse);
        compare_scratch(call, workspace, saved);
        hra::check(hra_forward(get(), &q.get(), &k.get(), &v.get(), &o.get(), lse.data(), workspace.data(),
                               saved.data(), stream));
    }

    /* hra_backward. Collective. do_ is the gradient of o; dlse may be nullptr. */
    void backward(const const_tensor &q, const const_tensor &k, const const_tensor &v, const const_tensor &o,
                  const const_memory &lse, const const_tensor &do_, const const_memory &dlse,
                  const tensor &dq, const tensor &dk, const tensor &dv, const memory &workspace,
                  const memory &saved = nullptr, void *stream = nullptr)
    {
        const char *const call = "hra::plan::backward";
        compare(call, "q", q, q_shape());
        compare(call, "k", k, k_shape());
        compare(call, "v", v, v_shape());
        compare(call, "o", o, o_shape());
        compare_sums(call, "lse", lse);
        compare(call, "do_", do_, o_shape());
        compare_sums(call, "dlse", dlse);
        compare(call, "dq", dq, q_shape());
        compare(call, "dk", dk, k_shape());
        compare(call, "dv", dv, v_shape());
        compare_scratch(call, workspace, saved);
        hra::check(hra_backward(get(), &q.get(), &k.get(), &v.get(), &o.get(), lse.data(), &do_.get(),
                                dlse.data(), &dq.get(), &dk.get(), &dv.get(), workspace.data(), saved.data(),
                                stream));
    }

    /* hra_reorder. The views are of float, double, or of two bytes where the plan's type has two. */
    void gather(const const_tensor &whole, const tensor &rows, void *stream = nullptr)
    {
        reorder("hra::plan::gather", HRA_GATHER, whole, rows, stream);
    }
    void scatter(const const_tensor &rows, const tensor &whole, void *stream = nullptr)
    {
        reorder("hra::plan::scatter", HRA_SCATTER, whole, rows, stream);
    }
    /* The same for tensors whose shape and type are named here. */
    void reorder(hra_direction direction, hra_type type, int heads, int dim, const hra_tensor &whole,
                 const hra_tensor &rows, void *stream = nullptr)
    {
        hra::check(hra_reorder(get(), direction, type, heads, dim, &whole, &rows, stream));
    }

  private:
    plan(hra_plan *owned, const comm &comm, const hra_problem &problem) : handle(owned), rank_(comm.rank())
    {
        hra_problem p{}; /* fields beyond size count as 0 */
        std::memcpy(static_cast<void *>(&p), &problem, std::min(problem.size, sizeof(p)));
        batch_ = p.batch == 0 ? 1 : p.batch;
        heads_ = p.heads;
        heads_kv_ = p.heads_kv == 0 ? p.heads : p.heads_kv;
        dim_ = p.dim;
        dim_v_ = p.dim_v == 0 ? p.dim : p.dim_v;
        tokens_ = p.tokens;
        type_ = p.type;
        rows_ = hra_plan_rows(get(), rank_);
        const hra_plan_info about = info();
        workspace_bytes_ = about.workspace_bytes;
        saved_bytes_ = about.saved_bytes;
    }

    static std::string text(const shape &s)
    {
        return "[" + std::to_string(s.batch) + "][" + std::to_string(s.rows) + "][" +
               std::to_string(s.heads) + "][" + std::to_string(s.dim) + "]";
    }

    static void compare_shape(const char *call, const char *name, const shape &given, const shape &wanted)
    {
        if (given != wanted)
            throw error(HRA_ERR_ARG, std::string(call) + ": " + name + " has shape " + text(given) +
                                         "; it must be " + text(wanted));
    }

    void compare(const char *call, const char *name, const const_tensor &given, const shape &wanted) const
    {
        if (given.element_bytes() == 0)
            return;
        compare_shape(call, name, given.shape(), wanted);
        compare_element(call, name, given.element_bytes(), type_);
    }

    static void compare_element(const char *call, const char *name, std::size_t bytes, hra_type type)
    {
        if (bytes != hra_type_bytes(type))
            throw error(HRA_ERR_ARG, std::string(call) + ": " + name + " has numbers of " +
                                         std::to_string(bytes) + " bytes; it must be " + hra_type_name(type));
    }

    static void compare_bytes(const char *call, const char *name, std::size_t given, std::size_t wanted)
    {
        if (given < wanted)
            throw error(HRA_ERR_ARG, std::string(call) + ": " + name + " has " + std::to_string(given) +
                                         " bytes; it must have " + std::to_string(wanted));
    }

    void compare_sums(const char *call, const char *name, const const_memory &given) const
    {
        const hra_type sums = hra_type_sums(type_);
        if (given.data() == nullptr)
            return;
        if (given.element_bytes() > 1)
            compare_element(call, name, given.element_bytes(), sums);
        compare_bytes(call, name, given.bytes(), lse_count() * hra_type_bytes(sums));
    }

    void compare_scratch(const char *call, const memory &workspace, const memory &saved) const
    {
        compare_bytes(call, "workspace", workspace.bytes(), workspace_bytes_);
        compare_bytes(call, "saved", saved.bytes(), saved_bytes_);
    }

    void reorder(const char *call, hra_direction direction, const const_tensor &whole,
                 const const_tensor &rows, void *stream)
    {
        const std::int64_t heads = rows.shape().heads, dim = rows.shape().dim;
        if (whole.element_bytes() == 0 || rows.element_bytes() == 0)
            throw error(HRA_ERR_ARG,
                        std::string(call) + ": a bare hra_tensor has no shape; reorder() takes it");
        const hra_type type = rows.element_bytes() == sizeof(double)  ? HRA_F64
                              : rows.element_bytes() == sizeof(float) ? HRA_F32
                                                                      : type_;
        compare_shape(call, "whole", whole.shape(), {batch_, tokens_, heads, dim});
        compare_shape(call, "rows", rows.shape(), {batch_, rows_, heads, dim});
        compare_element(call, "whole", whole.element_bytes(), type);
        compare_element(call, "rows", rows.element_bytes(), type);
        if (heads > 1 << 30 || dim > 1 << 30)
            throw error(HRA_ERR_ARG, std::string(call) + ": rows has shape " + text(rows.shape()));
        reorder(direction, type, static_cast<int>(heads), static_cast<int>(dim), whole.get(), rows.get(),
                stream);
    }

    int rank_;
    std::int64_t batch_, rows_, tokens_, heads_, heads_kv_, dim_, dim_v_;
    hra_type type_;
    std::size_t workspace_bytes_, saved_bytes_;
};

} // namespace hra

#endif
