"""hra_torch.py - exact attention of libhra in PyTorch, by its C API, without a compiled extension.

    plan = Plan("causal & window(4095,0)", tokens=32768, heads=16, dim=128)
    o = hra_attention(q, k, v, plan)      # (batch, rows, heads, dim), rows in the plan's order

    attend = HraAttention("grid(16,16)", grid=(256, 256), order="hilbert")
    o = attend(q, k, v)                   # (batch, tokens, heads, dim), tokens in natural order

Over the ranks of a process group, each with a GPU of its own, which is current:

    comm = Comm.over()
    plan = Plan("causal", tokens=1 << 20, heads=16, dim=128, comm=comm)
    x = embed(plan.take(ids))             # this rank's rows of (batch, tokens)
    o = hra_attention(q, k, v, plan)      # of the rank's rows
    comm.destroy()

Words are those of hra.h: a *token* is named by its natural index, a *slot* is its place in the
order in which the sequence is processed, the *rows* are the slots of this process in slot order.
docs/masks.md has the masks. What is called collective is called by all ranks alike, and so are
forward and backward of a plan that has several, in the same order on each.

    python3 hra_torch.py    compares with attention written out in PyTorch, on the CPU and a GPU
    torchrun --nproc-per-node N hra_torch.py    the same over N ranks on N GPUs

The library is the file that HRA_LIBRARY names, else libhra.so in the lib or build folder of a
folder above this file, else the one that the system's loader finds."""

import contextlib
import copy
import ctypes
import datetime
import os
import pathlib
import pickle
import re
import sys
import threading
import traceback
import weakref
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_size_t, c_void_p

import torch
import torch.distributed
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# ---- The C API ----------------------------------------------------------------------------------

VERSION = "0.1.0"  # the hra.h that the structs below repeat

TYPES = {torch.float64: 1, torch.float32: 2, torch.bfloat16: 3, torch.float16: 4}
TYPE_NAMES = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16",
              torch.float16: "f16"}
BACKENDS = {"cpu": 1, "cuda": 2, "sm90": 3, "gpu": 4}
DEFAULT_BACKENDS = {"cpu": "cpu", "cuda": "gpu"}  # by the type of the device
BACKWARDS = {"auto": 0, "fused": 1, "cublas": 2}
SAVED = {"nothing": 0, "qkv": 1}
ROWS = {"slots": 0, "tokens": 1}
SHARDS = {"auto": 0, "contiguous": 1, "zigzag": 2, "balanced": 3}
SCHEDULES = {"auto": 0, "ring": 1, "halo": 2, "heads": 3}
TRANSPORTS = {"auto": 0, "gpu": 2, "nccl": 3, "peer": 4}
GATHER, SCATTER = 0, 1
UNIQUE_ID_BYTES = 128


class HraError(RuntimeError):
    """A call of libhra failed: status is such as "HRA_ERR_ARG", sentence says what was wrong."""

    def __init__(self, status, sentence):
        super().__init__(f"{status}: {sentence}")
        self.status, self.sentence = status, sentence


class _Sized(ctypes.Structure):
    """A struct that begins with its own size; what is not given is 0, which means the default."""

    def __init__(self, **values):
        super().__init__(size=ctypes.sizeof(self), **values)


class _Domain(_Sized):
    _fields_ = [("size", c_size_t), ("batch", c_int), ("heads", c_int), ("tokens", c_int64),
                ("grid", c_int64 * 3)]


class _Problem(_Sized):
    _fields_ = [("size", c_size_t), ("batch", c_int), ("heads", c_int), ("heads_kv", c_int),
                ("head0", c_int), ("dim", c_int), ("dim_v", c_int), ("tokens", c_int64),
                ("tokens_kv", c_int64), ("type", c_int), ("scale", c_double), ("softcap", c_double),
                ("dropout", c_double), ("sinks", c_int), ("sm_margin", c_int), ("threads", c_int)]


class _Options(_Sized):
    _fields_ = [("size", c_size_t), ("shard", c_int), ("schedule", c_int), ("backend", c_int),
                ("backward", c_int), ("saved", c_int), ("machine", c_void_p), ("rows", c_int)]


class _CommOptions(_Sized):
    _fields_ = [("size", c_size_t), ("timeout_s", c_double), ("message_bytes", c_size_t),
                ("transport", c_int), ("setup_timeout_s", c_double)]


class _PlanInfo(_Sized):
    _fields_ = [("size", c_size_t), ("workspace_bytes", c_size_t), ("saved_bytes", c_size_t),
                ("arena_bytes", c_size_t), ("plan_bytes", c_size_t), ("pairs_live", c_int64),
                ("pairs_counted", c_int64), ("pairs_in_tiles", c_int64), ("pairs_all", c_int64),
                ("tiles_full", c_int64), ("tiles_partial", c_int64), ("bitmaps", c_int64),
                ("patterns", c_int), ("rounds_forward", c_int), ("rounds_backward", c_int),
                ("bytes_forward", c_int64), ("bytes_backward", c_int64), ("bytes_least", c_int64),
                ("bytes_least_backward", c_int64), ("balance", c_double),
                ("balance_bound", c_double), ("pieces", c_int), ("shard", c_int),
                ("blocking", c_int), ("threads", c_int), ("backend", c_char_p),
                ("transport", c_char_p), ("schedule", c_char_p), ("backward", c_char_p),
                ("inflation", c_double), ("reorders_forward", c_int),
                ("reorders_backward", c_int)]


class _Tensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("stride_batch", c_int64), ("stride_row", c_int64),
                ("stride_head", c_int64)]


_T = POINTER(_Tensor)
_CALLS = {  # what returns a status
    "hra_order_create": [POINTER(c_void_p), POINTER(_Domain), c_char_p],
    "hra_order_permutation": [POINTER(c_void_p), POINTER(_Domain), c_void_p],
    "hra_mask_parse": [POINTER(c_void_p), POINTER(_Domain), c_void_p, c_char_p],
    "hra_comm_create_self": [POINTER(c_void_p)],
    "hra_comm_create_model": [POINTER(c_void_p), c_int, c_int],
    "hra_comm_get_unique_id": [c_void_p],
    "hra_comm_create_unique": [POINTER(c_void_p), c_int, c_int, c_void_p, POINTER(_CommOptions)],
    "hra_comm_create_nccl": [POINTER(c_void_p), c_void_p, POINTER(_CommOptions)],
    "hra_comm_get_status": [c_void_p],
    "hra_comm_wait": [c_void_p, c_void_p],
    "hra_comm_destroy": [c_void_p],
    "hra_plan_create": [POINTER(c_void_p), c_void_p, POINTER(_Problem), c_void_p, c_void_p,
                        POINTER(_Options)],
    "hra_plan_get_info": [c_void_p, POINTER(_PlanInfo)],
    "hra_plan_row_index": [c_void_p, c_int, c_void_p, c_void_p],
    "hra_forward": [c_void_p, _T, _T, _T, _T, c_void_p, c_void_p, c_void_p, c_void_p],
    "hra_backward": [c_void_p, _T, _T, _T, _T, c_void_p, _T, c_void_p, _T, _T, _T, c_void_p,
                     c_void_p, c_void_p],
    "hra_reorder": [c_void_p, c_int, c_int, c_int, c_int, _T, _T, c_void_p],
}
_CUDA_CALLS = ["hra_comm_create_nccl"]  # in a library that was built with CUDA only
_QUESTIONS = {  # what returns something else: result, arguments
    "hra_version": (c_char_p, []),
    "hra_status_name": (c_char_p, [c_int]),
    "hra_last_error": (c_char_p, []),
    "hra_type_name": (c_char_p, [c_int]),
    "hra_comm_rank": (c_int, [c_void_p]),
    "hra_comm_ranks": (c_int, [c_void_p]),
    "hra_plan_rows": (c_int64, [c_void_p, c_int]),
    "hra_mask_print": (c_size_t, [c_void_p, c_char_p, c_size_t]),
    "hra_order_destroy": (None, [c_void_p]),
    "hra_mask_destroy": (None, [c_void_p]),
    "hra_plan_destroy": (None, [c_void_p]),
}


def _find():
    """The path or name of the library."""
    named = os.environ.get("HRA_LIBRARY")
    if named:
        return named
    for folder in pathlib.Path(__file__).resolve().parents:
        for place in ("build", "lib", "lib64", "lib/*-linux-gnu"):
            for found in folder.glob(place + "/libhra.so"):
                return str(found)
    return "libhra.so.0"


def _raise(status, _function, _arguments):
    """Runs after each call, on its thread, whose last error is therefore that of the call."""
    if status != 0:
        raise HraError(_lib.hra_status_name(status).decode(), _lib.hra_last_error().decode())


def _load():
    path = _find()
    try:
        lib = ctypes.CDLL(path)
        for name, arguments in _CALLS.items():
            if name in _CUDA_CALLS and not hasattr(lib, name):
                continue
            getattr(lib, name).argtypes = arguments
            getattr(lib, name).errcheck = _raise
        for name, (result, arguments) in _QUESTIONS.items():
            getattr(lib, name).restype = result
            getattr(lib, name).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise ImportError(f"libhra could not be loaded from {path}: {error}; "
                          "HRA_LIBRARY may name the file") from error
    return lib


_lib = _load()


def _with_cuda():
    """Whether the library was built with CUDA."""
    return all(hasattr(_lib, name) for name in _CUDA_CALLS)


def _made(call, *arguments):
    """The object that a creating call makes."""
    handle = c_void_p()
    call(byref(handle), *arguments)
    return handle


# ---- Is that library ours? ----------------------------------------------------------------------

def _size_in_library(struct, call):
    """sizeof(struct) in the library: it refuses the first byte beyond the fields that it knows if
    that byte is not 0, and says which it was."""
    room = ctypes.sizeof(struct) + 64
    memory = ctypes.create_string_buffer(b"\xff" * room, room)
    c_size_t.from_buffer(memory).value = room
    try:
        call(ctypes.cast(memory, POINTER(struct)))
    except HraError as error:
        byte = re.search(r"field at byte (\d+) ", error.sentence)
        if error.status == "HRA_ERR_UNSUPPORTED" and byte:
            return int(byte.group(1))
    return f"over {room - 1}"


def _info_size_in_library(plan):
    """The same for the struct that the library fills in: what it does not write stays as it was."""
    room = ctypes.sizeof(_PlanInfo) + 64
    memory = ctypes.create_string_buffer(b"\xff" * room, room)
    c_size_t.from_buffer(memory).value = room
    _lib.hra_plan_get_info(plan, ctypes.cast(memory, POINTER(_PlanInfo)))
    return len(memory.raw.rstrip(b"\xff"))


def _check_library():
    """Structs of another shape would be read and written past their ends: nothing runs then."""
    version = _lib.hra_version().decode()
    if version != VERSION:
        raise ImportError(f"libhra is version {version}, hra_torch.py is written for {VERSION}")
    names = {kind: _lib.hra_type_name(number).decode() for kind, number in TYPES.items()}
    if names != TYPE_NAMES:
        raise ImportError(f"libhra has other numbers for its types than hra_torch.py: {names}")

    domain = _Domain(tokens=1)
    problem = _Problem(heads=1, dim=1, tokens=1, type=TYPES[torch.float32], threads=1)
    comm = _made(_lib.hra_comm_create_model, 0, 1)
    mask = _made(_lib.hra_mask_parse, domain, None, b"full")
    plan = _made(_lib.hra_plan_create, comm, problem, None, mask, None)
    sizes = {
        _Domain: _size_in_library(_Domain, lambda d: _made(_lib.hra_mask_parse, d, None, b"full")),
        _Problem: _size_in_library(
            _Problem, lambda p: _made(_lib.hra_plan_create, comm, p, None, mask, None)),
        _Options: _size_in_library(
            _Options, lambda o: _made(_lib.hra_plan_create, comm, problem, None, mask, o)),
        _PlanInfo: _info_size_in_library(plan),
    }
    if _with_cuda():  # else the options are not looked at
        sizes[_CommOptions] = _size_in_library(_CommOptions, lambda o: _made(
            _lib.hra_comm_create_unique, 0, 1, bytes(UNIQUE_ID_BYTES), o))
    _lib.hra_plan_destroy(plan)
    _lib.hra_mask_destroy(mask)
    _lib.hra_comm_destroy(comm)
    for struct, size in sizes.items():
        if size != ctypes.sizeof(struct):
            raise ImportError(f"{struct.__name__} has {size} bytes in libhra and "
                              f"{ctypes.sizeof(struct)} in hra_torch.py: they differ in version")


_check_library()


# ---- Domains, orders, masks ---------------------------------------------------------------------

def _choose(table, name, what):
    if name not in table:
        raise ValueError(f"{what} is {name!r}; it must be one of {', '.join(map(str, table))}")
    return table[name]


def _domain(tokens, grid, batch=1, heads=1):
    grid = tuple(grid or ())
    if len(grid) not in (0, 2, 3):
        raise ValueError(f"grid is {grid}; it must have two or three extents")
    return _Domain(batch=batch, heads=heads, tokens=tokens or 0, grid=(*grid, 0, 0, 0)[:3])


class _Shared:
    """An object of the library, which never changes: the copy of a module shares it."""

    def __deepcopy__(self, _memo):
        return self


class Order(_Shared):
    """A bijection between tokens and slots: the name of one, such as "hilbert" or "boxes:8x16", or
    the token of each slot as a tensor of integers."""

    def __init__(self, order, *, tokens=None, grid=None):
        if isinstance(order, str):
            self.handle = _made(_lib.hra_order_create, _domain(tokens, grid), order.encode())
        else:
            slot_to_token = torch.as_tensor(order).to("cpu", torch.int64).contiguous()
            if tokens is None and not grid:
                tokens = slot_to_token.numel()
            self.handle = self._permutation(slot_to_token, _domain(tokens, grid))
        weakref.finalize(self, _lib.hra_order_destroy, self.handle)

    @staticmethod
    def _permutation(slot_to_token, domain):
        # The library reads as many entries as the domain has tokens.
        tokens = domain.tokens or domain.grid[0] * domain.grid[1] * max(1, domain.grid[2])
        if slot_to_token.shape != (tokens,):
            raise ValueError(f"the permutation has shape {tuple(slot_to_token.shape)}; it must "
                             f"have one token for each of {tokens} slots")
        return _made(_lib.hra_order_permutation, domain, slot_to_token.data_ptr())


class Mask(_Shared):
    """Which pairs attend, from its text. heads counts the query heads of the whole model; order, an
    Order or its name, is the one that slots(M) reads."""

    def __init__(self, text, *, tokens=None, heads=1, batch=1, grid=None, order=None):
        if isinstance(order, str):
            order = Order(order, tokens=tokens, grid=grid)
        self.handle = _made(_lib.hra_mask_parse, _domain(tokens, grid, batch, heads),
                            order.handle if order else None, text.encode())
        weakref.finalize(self, _lib.hra_mask_destroy, self.handle)

    def __str__(self):
        size = _lib.hra_mask_print(self.handle, None, 0) + 1
        text = ctypes.create_string_buffer(size)
        _lib.hra_mask_print(self.handle, text, size)
        return text.value.decode()


# ---- Communicators and plans --------------------------------------------------------------------

def _on(device):
    """Makes a GPU the current one, which its plans are made and used on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Comm(_Shared):
    """The ranks that hold one sequence: this process alone, on a device, which is what plans take
    by default; or those of a process group, Comm.over(...)."""

    def __init__(self, device, create, *arguments):
        self.device = device
        # A communicator and its plans are used by one thread at a time, but backward has its own
        # thread on GPUs, and plans are destroyed by whichever collects them, perhaps one that holds
        # the lock.
        self.lock = threading.RLock()
        self._workspace = {}
        with _on(device):
            self.handle = _made(create, *arguments)
        self.rank = _lib.hra_comm_rank(self.handle)
        self.ranks = _lib.hra_comm_ranks(self.handle)
        self.end = weakref.finalize(self, _lib.hra_comm_destroy, self.handle)
        self.made = weakref.WeakSet()  # all its plans
        # Those that modules share, by what they were made for, since layers are alike. Each is
        # kept by the modules that use it.
        self.plans = weakref.WeakValueDictionary()

    @classmethod
    def over(cls, group=None, *, transport="auto", timeout=0, setup_timeout=0, borrow=False):
        """Over the ranks of a process group of any backend, by default the default one. Each has a
        GPU of its own, which is current. Collective over the group.

        transport  "auto", "gpu", "nccl" or "peer", as hra.h has them
        timeout    seconds that a call or a stream waits for another rank; 0: the library's default,
                   negative: no limit
        setup_timeout
                   the same where communicators and plans are made and communicators end; 0: as
                   timeout
        borrow     split off the NCCL communicator that PyTorch has for the group; by default it is
                   made with a unique id, which the group hands round

        It lives until destroy() is called on all ranks, and so do the plans that modules make on
        it: which of them a rank still has may not depend on its garbage collection, since all
        ranks make a new one together."""
        device = _device("cuda")
        options = _CommOptions(timeout_s=timeout, setup_timeout_s=setup_timeout,
                               transport=_choose(TRANSPORTS, transport, "transport"))
        if borrow:
            parent = _nccl_of(group, device)
            return cls(device, _lib.hra_comm_create_nccl, parent, options)._keep()
        unique_id = _unique_id(group)
        return cls(device, _lib.hra_comm_create_unique, torch.distributed.get_rank(group),
                   torch.distributed.get_world_size(group), unique_id, options)._keep()

    def _keep(self):
        """From now on nothing but destroy() ends it, or the end of the process."""
        self.end.atexit = False
        self.plans = {}
        _kept.add(self)
        return self

    def destroy(self):
        """End the communicator and its plans, which cannot be used any more, when the current
        stream has done what it holds. Collective; after a failure local. Nothing when called
        again."""
        if not self.end.alive:
            return
        try:
            self.wait()
        except HraError:
            if self.failure() is None:  # something else holds up the stream, which may need plans
                raise
        for plan in list(self.made):
            plan.end()
        self.plans.clear()
        self._workspace.clear()
        _kept.discard(self)
        if _comms.get(self.device) is self:
            del _comms[self.device]
        with _on(self.device), self.lock:
            self.end()

    def failure(self):
        """The HraError that ended the communicator, perhaps while a stream worked; None as long as
        there is none. Never blocks."""
        try:
            _lib.hra_comm_get_status(self.living())
        except HraError as error:
            return error
        return None

    def wait(self):
        """Wait on the host for what the current stream holds, but not longer than the time limit.
        Raises what has failed; outputs are undefined then."""
        with _on(self.device), self.lock:
            _lib.hra_comm_wait(self.living(), self.stream())

    def living(self):
        """The library's communicator."""
        if not self.end.alive:
            raise ValueError("the communicator has been destroyed")
        return self.handle

    def stream(self):
        """PyTorch's current cudaStream_t; None for the default stream and on the CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.current_stream(self.device).cuda_stream or None

    def workspace(self, size):
        """Scratch of at least `size` bytes for one call. All plans share it, but each stream has
        its own, since calls on two streams may run side by side; and so has each captured graph,
        whose replays may run beside anything."""
        def take():
            return torch.empty(size, dtype=torch.uint8, device=self.device)
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return take()
        stream = self.stream()
        if stream not in self._workspace or self._workspace[stream].numel() < size:
            self._workspace.pop(stream, None)  # so that the new one may take its place
            self._workspace[stream] = take()
        return self._workspace[stream]


_comms = weakref.WeakValueDictionary()  # of one rank, by device
_kept = set()  # those over process groups


def _comm_of(device):
    comm = _comms.get(device)
    if comm is None:
        comm = _comms[device] = Comm(device, _lib.hra_comm_create_self)
    return comm


def _unique_id(group):
    """What rank 0 makes and tells the others; a failure too, which all ranks then raise."""
    told = [None]
    if torch.distributed.get_rank(group) == 0:
        memory = ctypes.create_string_buffer(UNIQUE_ID_BYTES)
        try:
            _lib.hra_comm_get_unique_id(memory)
            told = [memory.raw]
        except HraError as error:
            told = [(error.status, error.sentence)]
    torch.distributed.broadcast_object_list(told, group=group, group_src=0)
    if isinstance(told[0], tuple):
        raise HraError(*told[0])
    return told[0]


def _nccl_of(group, device):
    """The ncclComm_t that PyTorch has for the group on this GPU."""
    if not _with_cuda():
        raise HraError("HRA_ERR_UNSUPPORTED", f"{_lib._name} was built without CUDA")
    group = group or torch.distributed.group.WORLD
    backend = group._get_backend(device)
    backend = getattr(backend, "wrapped_pg", backend)  # TORCH_DISTRIBUTED_DEBUG=DETAIL wraps it
    if not hasattr(backend, "_comm_ptr"):
        raise ValueError(f"the process group speaks {backend.name()} between GPUs; only NCCL has a "
                         "communicator that can be borrowed")
    # PyTorch makes it at the group's first collective, and NCCL splits none that has work to do.
    torch.distributed.all_reduce(torch.zeros(1, device=device), group=group)
    torch.cuda.synchronize(device)
    pointer = backend._comm_ptr()
    if not pointer:
        raise RuntimeError(f"PyTorch has no NCCL communicator for the process group on {device}")
    return pointer


def _destroy_plan(handle, comm):
    # Whoever waits to call this holds comm, which cannot be destroyed while its plans live.
    with comm.lock:
        _lib.hra_plan_destroy(handle)


class Plan(_Shared):
    """One attention problem compiled, to be used by every layer and step.

    mask      its text or a Mask; where heads are split over processes, a Mask for all heads
    tokens    of one sequence; by default the product of grid
    heads     query heads here; heads_kv, by default as many, divides them; head0 is the mask's head
              of our head 0
    dim       channels of a head of q and k; dim_v, by default as many, of v and o
    order     in which tokens are processed: a name, an Order, or a tensor with each slot's token
    scale     factor on q.k, by default 1/sqrt(dim)
    backward  "auto", "fused" or "cublas"
    saved     "nothing" or "qkv": what forward keeps for backward
    rows      "slots": tensors have the rank's rows in the plan's order; "tokens": all tokens in
              natural order, on one rank. info["reorders_forward"] and ["reorders_backward"] tell
              whether a pass then brings what it reads into the plan's order, or takes it as it is
    sm_margin multiprocessors that attention leaves to others, on "sm90" with its own backward
    shard     "auto", "contiguous", "zigzag" or "balanced"
    schedule  how K/V travel between ranks: "auto", "ring", "halo" or "heads"
    backend   "cpu", "cuda", "sm90" or "gpu", which is the faster of these two that can do it; by
              default "gpu" where there is one. Tensors of a plan on a GPU lie on the one that was
              current when it was made
    comm      by default the one rank of this process; over several ranks making a plan is
              collective, and its tensors are the rank's own rows
    """

    def __init__(self, mask, *, heads, dim, tokens=None, heads_kv=None, dim_v=None, batch=1,
                 dtype=torch.bfloat16, order="identity", grid=None, scale=None, head0=0,
                 backward="auto", saved="nothing", rows="slots", sm_margin=0, shard="auto",
                 schedule="auto", backend=None, comm=None):
        self.device = comm.device if comm and not backend else _device(backend)
        self.comm = comm or _comm_of(self.device)
        if self.comm.device != self.device:
            raise ValueError(f"comm belongs to {self.comm.device}, the plan to {self.device}")
        if not isinstance(order, Order):
            order = Order(order, tokens=tokens, grid=grid)
        if not isinstance(mask, Mask):
            mask = Mask(mask, tokens=tokens, heads=head0 + heads, batch=batch, grid=grid,
                        order=order)
        self.tokens = tokens or torch.Size(grid).numel()
        self.batch, self.dtype = batch, dtype
        self.heads, self.heads_kv = heads, heads_kv or heads
        self.dim, self.dim_v = dim, dim_v or dim
        problem = _Problem(batch=batch, heads=heads, heads_kv=self.heads_kv, head0=head0, dim=dim,
                           dim_v=self.dim_v, tokens=self.tokens, scale=scale or 0, sm_margin=sm_margin,
                           type=_choose(TYPES, dtype, "dtype"))
        options = _Options(shard=_choose(SHARDS, shard, "shard"),
                           schedule=_choose(SCHEDULES, schedule, "schedule"),
                           backend=_choose(BACKENDS, backend or DEFAULT_BACKENDS[self.device.type],
                                           "backend"),
                           backward=_choose(BACKWARDS, backward, "backward"),
                           saved=_choose(SAVED, saved, "saved"),
                           rows=_choose(ROWS, rows, "rows"))
        with _on(self.device), self.comm.lock:
            self.handle = _made(_lib.hra_plan_create, self.comm.living(), problem, order.handle,
                                mask.handle, options)
        self.end = weakref.finalize(self, _destroy_plan, self.handle, self.comm)
        self.end.atexit = self.comm.end.atexit
        self.comm.made.add(self)
        self.rows = _lib.hra_plan_rows(self.handle, self.comm.rank)
        self.info = self._ask()
        self.by_token = rows == "tokens"
        every = torch.arange(self.tokens, device=self.device)
        self.row_tokens = every if self.by_token else self.row_index()[1]
        # Rows that are all tokens in natural order need no reordering.
        self.natural = torch.equal(self.row_tokens, every)

    def living(self):
        """The library's plan."""
        if not self.end.alive:
            raise ValueError("the plan has been destroyed with its communicator")
        return self.handle

    def _ask(self):
        info = _PlanInfo()
        _lib.hra_plan_get_info(self.handle, info)
        values = {name: getattr(info, name) for name, _ in info._fields_ if name != "size"}
        values["shard"] = {number: name for name, number in SHARDS.items()}[info.shard]
        return {name: value.decode() if isinstance(value, bytes) else value
                for name, value in values.items()}

    def row_index(self, rank=None):
        """The slot and the token of each row of a rank, by default our own: two tensors of int64
        (rows). Local."""
        rank = self.comm.rank if rank is None else rank
        rows = max(0, _lib.hra_plan_rows(self.living(), rank))
        slots, tokens = torch.empty(2, rows, dtype=torch.int64, device="cpu")
        _lib.hra_plan_row_index(self.handle, rank, slots.data_ptr(), tokens.data_ptr())
        return slots.to(self.device), tokens.to(self.device)

    def take(self, whole, dim=1):
        """Our rows of any tensor that has all tokens along `dim`: of token numbers, positions,
        labels. Differentiable."""
        return whole.index_select(dim, self.row_tokens.to(whole.device))

    def gather(self, whole):
        """Our rows, in the plan's order, of a tensor (batch, tokens, heads, dim) of any floating
        type. Differentiable, as is scatter. A model of several layers gathers its hidden states
        once, as (batch, tokens, 1, channels), and attends in the plan's order in all of them.
        Local, as is scatter."""
        return _Reorder.apply(whole, self, GATHER)

    def scatter(self, rows):
        """The other way: (batch, rows, heads, dim) to natural order, zero where other ranks have
        their rows, so that the sum over the ranks is the whole."""
        return _Reorder.apply(rows, self, SCATTER)

    def empty(self, batch, count, heads, dim, dtype=None):
        """A tensor that the plan can write: where the channels of a head are not a multiple of 16
        bytes, its heads lie further apart on a GPU."""
        dtype = dtype or self.dtype
        step = dim + -dim % (self._rule() // dtype.itemsize or 1)
        strides = (count * heads * step, heads * step, step, 1)
        return torch.empty_strided((batch, count, heads, dim), strides, dtype=dtype,
                                   device=self.device)

    def fit(self, tensor):
        """`tensor` (batch, count, heads, dim), or a copy where the plan cannot read it there."""
        if self._fault(tensor) is None:
            return tensor
        return self.empty(*tensor.shape, dtype=tensor.dtype).copy_(tensor)

    def _rule(self):
        """Data and strides are multiples of so many bytes."""
        return 16 if self.device.type == "cuda" else 1

    def _fault(self, tensor):
        """Why the plan cannot read the memory of a tensor of four dimensions; None if it can."""
        if tensor.shape[3] > 1 and tensor.stride(3) != 1:
            return "its channels are not contiguous"
        rule, size = self._rule(), tensor.element_size()
        if tensor.data_ptr() % rule or any(s * size % rule for s in _strides(tensor)):
            return f"its data and strides in bytes are not all multiples of {rule}"
        return None

    def _pass(self, tensor, name, *shape):
        """`tensor`, checked, as the library takes it."""
        if tensor.shape != (self.batch, *shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; the plan needs "
                             f"{(self.batch, *shape)}")
        if tensor.device != self.device:
            raise ValueError(f"{name} is on {tensor.device}, the plan on {self.device}")
        fault = self._fault(tensor)
        if fault:
            raise ValueError(f"{name}: {fault}: data at {tensor.data_ptr():#x}, strides "
                             f"{tensor.stride()} of {tensor.element_size()} bytes; "
                             "Plan.fit copies it")
        return _Tensor(tensor.data_ptr(), *_strides(tensor))

    def _pass_all(self, **tensors):
        """Several of the problem's tensors; the last letter of a name says what it is like."""
        shapes = {"q": (self.rows, self.heads, self.dim), "k": (self.rows, self.heads_kv, self.dim),
                  "v": (self.rows, self.heads_kv, self.dim_v),
                  "o": (self.rows, self.heads, self.dim_v)}
        for name, tensor in tensors.items():
            if tensor.dtype != self.dtype:
                raise ValueError(f"{name} is of {tensor.dtype}, the plan of {self.dtype}")
        return [self._pass(tensor, name, *shapes[name[-1]]) for name, tensor in tensors.items()]

    def _sums(self):
        """The type of lse and its gradient."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def forward(self, q, k, v):
        """o, lse, and what the library keeps for backward. No gradients: hra_attention has them."""
        o = self.empty(self.batch, self.rows, self.heads, self.dim_v)
        lse = torch.empty(self.batch, self.heads, self.rows, dtype=self._sums(), device=self.device)
        saved = torch.empty(self.info["saved_bytes"], dtype=torch.uint8, device=self.device)
        tensors = self._pass_all(q=q, k=k, v=v, o=o)
        with _on(self.device), self.comm.lock:
            work = self.comm.workspace(self.info["workspace_bytes"])
            _lib.hra_forward(self.living(), *tensors, lse.data_ptr(), work.data_ptr() or None,
                             saved.data_ptr() or None, self.comm.stream())
        return o, lse, saved

    def backward(self, q, k, v, o, lse, saved, do, dlse):
        """dq, dk, dv of a forward, given its arguments and results and the gradients of o and lse,
        either of which may be None."""
        do = self.empty(*o.shape).zero_() if do is None else self.fit(do)
        dlse = None if dlse is None else dlse.contiguous()
        dq, dk, dv = self.empty(*q.shape), self.empty(*k.shape), self.empty(*v.shape)
        # All tensors keep their names to the end, so that their memory is not given away meanwhile.
        *given, do_ = self._pass_all(q=q, k=k, v=v, o=o, do=do)
        gradients = self._pass_all(dq=dq, dk=dk, dv=dv)
        with _on(self.device), self.comm.lock:
            work = self.comm.workspace(self.info["workspace_bytes"])
            _lib.hra_backward(self.living(), *given, lse.data_ptr(), do_,
                              None if dlse is None else dlse.data_ptr(), *gradients,
                              work.data_ptr() or None, saved.data_ptr() or None, self.comm.stream())
        return dq, dk, dv

    def reorder(self, tensor, direction):
        """Gather or scatter without gradients."""
        count, other = (self.tokens, self.rows) if direction == GATHER else (self.rows, self.tokens)
        if tensor.dim() != 4:
            raise ValueError(f"the tensor has shape {tuple(tensor.shape)}; it must be "
                             f"(batch, {'tokens' if direction == GATHER else 'rows'}, heads, dim)")
        heads, dim = tensor.shape[2:]
        result = self.empty(self.batch, other, heads, dim, dtype=tensor.dtype)
        if direction == SCATTER and self.rows < self.tokens:
            result.zero_()
        given = self._pass(tensor, "the tensor", count, heads, dim)
        written = self._pass(result, "the result", other, heads, dim)
        whole, rows = (given, written) if direction == GATHER else (written, given)
        kind = _choose(TYPES, tensor.dtype, "the tensor's type")
        if self.by_token:
            return result.copy_(tensor)
        with _on(self.device), self.comm.lock:
            _lib.hra_reorder(self.living(), direction, kind, heads, dim, whole, rows,
                             self.comm.stream())
        return result


def _device(backend):
    backend = backend or ("cuda" if torch.cuda.is_available() else "cpu")
    _choose(BACKENDS, backend, "backend")
    if backend == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    torch.empty(1, device=device)  # makes its context, which the library then finds current
    return device


def _strides(tensor):
    """Of batch, row and head; 0 where there is only one, whose stride may be anything."""
    return [tensor.stride(d) if tensor.shape[d] > 1 else 0 for d in range(3)]


# ---- Autograd -----------------------------------------------------------------------------------

class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, plan, direction):
        ctx.plan, ctx.direction = plan, direction
        return plan.reorder(tensor, direction)

    @staticmethod
    def backward(ctx, gradient):
        # A bijection: the gradient goes the other way. With apply it can be differentiated again.
        other = SCATTER if ctx.direction == GATHER else GATHER
        return _Reorder.apply(ctx.plan.fit(gradient), ctx.plan, other), None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, plan):
        o, lse, saved = plan.forward(q, k, v)
        ctx.plan = plan
        ctx.save_for_backward(q, k, v, o, lse, saved)
        ctx.set_materialize_grads(False)  # a gradient of lse that nobody wants costs nothing
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dlse):
        if do is None and dlse is None:
            return None, None, None, None
        return *ctx.plan.backward(*ctx.saved_tensors, do, dlse), None


def hra_attention(q, k, v, plan, return_lse=False):
    """Exact attention of the plan's problem, and its gradients.

    q (batch, rows, heads, dim), k (batch, rows, heads_kv, dim), v (batch, rows, heads_kv, dim_v),
    rows in the plan's order, in any layout whose channels are contiguous: (batch, seq, head, dim)
    and (seq, batch, head, dim) alike, transposed to this shape and not copied. On a GPU data and
    strides are multiples of 16 bytes (Plan.fit). Returns o (batch, rows, heads, dim_v), and with
    return_lse the natural logarithm of the sum of exponentials, (batch, heads, rows), which has a
    gradient too."""
    o, lse = _Attention.apply(q, k, v, plan)
    return (o, lse) if return_lse else o


class HraAttention(torch.nn.Module):
    """Attention on tensors in natural token order: gathers them into the order, attends, scatters, but
    for what the backend reads and writes as it is.

    mask, order, grid and the options are Plan's. Everything else is read off the tensors; a plan is
    made for each new shape, type and device, on that device's backend if the options name none,
    and kept.

    With a comm the tensors are the rank's own rows in the plan's order instead, of sequences of so
    many tokens, by default the product of grid; plan_for(...) tells which rows these are. A new
    shape is collective then, since a plan is made for it."""

    def __init__(self, mask, *, order="identity", grid=None, tokens=None, comm=None, **options):
        super().__init__()
        grid = tuple(grid) if grid else None
        if comm and not (tokens or grid):
            raise ValueError("with a comm, tokens or grid must say how long a sequence is")
        if tokens and not comm:
            raise ValueError("tokens are read off the tensors where there is no comm")
        if not isinstance(order, (str, Order)):
            order = Order(order, grid=grid)
        self.comm, self.tokens = comm, tokens or (torch.Size(grid).numel() if comm else None)
        self.arguments = {"mask": mask, "order": order, "grid": grid, **options}
        self.plans = {}

    def plan(self, q, k, v):
        """The plan for tensors (batch, tokens or rows, heads, dim) such as these."""
        for name, tensor in {"q": q, "k": k, "v": v}.items():
            if tensor.dim() != 4:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be "
                                 f"(batch, {'rows' if self.comm else 'tokens'}, heads, dim)")
        batch, count, heads, dim = q.shape
        return self.plan_for(batch=batch, tokens=self.tokens or count, heads=heads, dim=dim,
                             heads_kv=k.shape[2], dim_v=v.shape[3], dtype=q.dtype, device=q.device)

    def plan_for(self, *, heads, dim, heads_kv=None, dim_v=None, batch=1, dtype=torch.bfloat16,
                 tokens=None, device=None):
        """The plan for tensors of such sizes. tokens and device are needed without a comm."""
        device = device or self.comm.device
        sizes = {"batch": batch, "tokens": tokens or self.tokens, "heads": heads, "dim": dim,
                 "heads_kv": heads_kv or heads, "dim_v": dim_v or dim, "dtype": dtype}
        key = (self.comm, device, *sizes.values(), *self.arguments.items())
        if key not in self.plans:
            with _on(device):
                comm = self.comm or _comm_of(_device(device.type))
                plan = comm.plans.get(key)
                if plan is None:
                    options = {"backend": DEFAULT_BACKENDS[device.type], **self.arguments}
                    plan = self._make(sizes, options, comm)
                comm.plans[key] = plan
            self.plans[key] = plan
        return self.plans[key]

    def _make(self, sizes, options, comm):
        """A plan by tokens where its forward reads or writes them as they are: sm90's. Elsewhere rows are
        gathered and scattered here."""
        if not self.comm and comm.device.type == "cuda" and not {"rows", "saved"} & options.keys():
            plan = Plan(**sizes, **options, rows="tokens", saved="qkv", comm=comm)
            if plan.info["backend"] == "sm90":
                return plan
        return Plan(**sizes, **options, comm=comm)

    def forward(self, q, k, v):
        """q (batch, tokens, heads, dim), k (batch, tokens, heads_kv, dim), v (batch, tokens,
        heads_kv, dim_v), in any layout; returns o (batch, tokens, heads, dim_v). With a comm rows
        for tokens."""
        plan = self.plan(q, k, v)
        q, k, v = (plan.fit(t) for t in (q, k, v))
        if plan.natural or self.comm:
            return hra_attention(q, k, v, plan)
        q, k, v = (plan.gather(t) for t in (q, k, v))
        return plan.scatter(hra_attention(q, k, v, plan))

    def __getstate__(self):
        # Plans are not copied or written with the module: they are made again where it is used.
        return {**self.__dict__, "plans": {}}


# ---- Under torchrun -----------------------------------------------------------------------------

def under_torchrun():
    return "TORCHELASTIC_RUN_ID" in os.environ


def join(timeout=300):
    """Of a program that torchrun has started: makes this rank's GPU the current one and joins the
    process group, whose operations wait so many seconds for each other. Ends the program where not
    every rank has a GPU."""
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.device_count()
    if gpus < here:
        sys.exit(f"torchrun has started {here} ranks on this machine, which has {gpus} GPU"
                 f"{'' if gpus == 1 else 's'}: the ranks of a process group meet over NCCL, which "
                 "wants a GPU for each. Ranks that share one are for MPI: mpirun -n N hra-check "
                 "--transport peer")
    torch.cuda.set_device(local)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl",
                                         timeout=datetime.timedelta(seconds=timeout))


def of_all(value):
    """The value of every rank, by rank: anything that pickle takes. Collective over the process
    group; [value] where there is none."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


# ---- Self test ----------------------------------------------------------------------------------

def _plain(q, k, v, count, scale):
    """Attention written out, every result in the type of q: o and lse in natural order, for how
    often each (head, query, key) attends."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (q, k.repeat_interleave(group, 2),
                                           v.repeat_interleave(group, 2)))
    empty = (count == 0).all(-1)  # rows without a key; infinities there would spoil gradients
    weight = count.to(q.dtype).log().masked_fill(empty.unsqueeze(-1), 0)
    score = q @ k.transpose(2, 3) * scale + weight
    lse = torch.logsumexp(score, -1)
    p = torch.exp(score - lse.unsqueeze(-1)).masked_fill(empty.unsqueeze(-1), 0)
    return (p @ v).transpose(1, 2), lse.masked_fill(empty, -torch.inf)


def _evaluate(attend, inputs, gradients):
    """o, lse, dq, dk, dv of a function of q, k and v."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    o, lse = attend(*inputs)
    return [t.detach() for t in (o, lse, *torch.autograd.grad((o, lse), inputs, gradients))]


def _off(result, truth):
    """Relative error in the mean square; what is infinite must be so in both."""
    result, truth = result.double(), truth.double()
    finite = truth.isfinite()
    if not torch.equal(result.isfinite(), finite) or result.shape != truth.shape:
        return torch.inf
    if not finite.any():  # a rank without rows, for one
        return 0.0
    difference = (result - truth)[finite].norm() / truth[finite].norm()
    return difference.item()


def _in_slots(order, **domain):
    """The slot of each token."""
    plan = Plan("full", heads=1, dim=8, order=order, dtype=torch.float32, backend="cpu", **domain)
    slots, tokens = plan.row_index()
    return torch.empty_like(slots).index_copy_(0, tokens, slots)


def _cell(n, *grid):
    """Coordinates of tokens."""
    cells = []
    for extent in reversed(grid):
        cells.insert(0, n % extent)
        n = n // extent
    return cells


def _near(i, j, grid, radius):
    return torch.stack([(a - b).abs() <= r for a, b, r in
                        zip(_cell(i, *grid), _cell(j, *grid), radius)]).all(0)


def _dilated(i, j, h, segment, rate):
    """Of head h: every rate-th query to every rate-th key of its segment."""
    same = i // segment == j // segment
    return same & (i % segment % rate == h % rate) & (j % segment % rate == h % rate)


def _along_hilbert(i, j, _h):
    slot = _in_slots("hilbert", tokens=300)
    return (j <= i) & (slot[i] - slot[j] >= 0) & (slot[i] - slot[j] <= 30)


_DOCUMENT = torch.arange(4).repeat_interleave(torch.tensor([100, 1, 150, 49]))

# Mask, how often query i attends to key j in head h (tensors), and what differs from the defaults
# of _evaluate_case.
_CASES = [
    ("full", lambda i, j, h: i == i, {"tokens": 1}),
    ("full", lambda i, j, h: i == i, {}),
    ("causal", lambda i, j, h: j <= i, {"heads": 4, "heads_kv": 2, "dim_v": 24, "batch": 2}),
    ("window(37,5)", lambda i, j, h: (i - j <= 37) & (j - i <= 5), {"dim": 36}),
    ("causal & docs(100,1,150,49)", lambda i, j, h: (j <= i) & (_DOCUMENT[i] == _DOCUMENT[j]), {}),
    ("grid(2,3)", lambda i, j, h: _near(i, j, (20, 16), (2, 3)),
     {"grid": (20, 16), "order": "hilbert"}),
    ("grid(1,2,2)", lambda i, j, h: _near(i, j, (4, 9, 10), (1, 2, 2)),
     {"grid": (4, 9, 10), "order": "boxes:2x4x4", "dim": 36}),
    ("slots(hilbert; window(30,0) & causal)", _along_hilbert, {"order": "hilbert"}),
    ("dilated(64,4,0,both)", lambda i, j, h: _dilated(i, j, 0 * h, 64, 4), {}),
    ("dilated(140,4,0,both)", lambda i, j, h: _dilated(i, j, 0 * h, 140, 4),
     {"order": "residues:140:4"}),
    ("mix(window(16,0); dilated(64,4,0,keys))",
     lambda i, j, h: ((i - j <= 16) & (j <= i)).int()
     + ((i // 64 == j // 64) & (j % 64 % 4 == 0)).int(), {}),
    ("longnet(64:2, 128:4)",
     lambda i, j, h: _dilated(i, j, h, 64, 2).int() + _dilated(i, j, h, 128, 4).int(),
     {"order": "snake"}),
    ("heads(0-1: full; 2-3: causal)", lambda i, j, h: (h < 2) | (j <= i),
     {"head0": 1, "all_heads": 4}),
    ("causal", lambda i, j, h: j <= i, {"heads": 4, "heads_kv": 1, "dim": 128}),
    ("window(37,5)", lambda i, j, h: (i - j <= 37) & (j - i <= 5), {"dim": 64, "batch": 2}),
]


def _evaluate_case(mask, count, case, dtype, device, comm):
    """Errors of each result on this rank's rows, [(of HRA, of the plain evaluation in the same
    type)]."""
    case = {"heads": 2, "dim": 32, "head0": 0, "order": "identity", "batch": 1, "grid": None,
            **case}
    all_heads = case.pop("all_heads", case["head0"] + case["heads"])
    tokens = case.setdefault("tokens", torch.Size(case["grid"]).numel() if case["grid"] else 300)
    heads_kv, dim_v = case.get("heads_kv", case["heads"]), case.get("dim_v", case["dim"])
    mask = Mask(mask, tokens=tokens, heads=all_heads, batch=case["batch"], grid=case["grid"])
    plan = Plan(mask, dtype=dtype, backend=DEFAULT_BACKENDS[device.type], comm=comm, **case)

    seed = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=seed, dtype=torch.float64).to(device, dtype)
    batch, heads, dim = case["batch"], case["heads"], case["dim"]
    inputs = [draw(batch, tokens, heads, dim), draw(batch, tokens, heads_kv, dim),
              draw(batch, tokens, heads_kv, dim_v)]
    gradients = [draw(batch, tokens, heads, dim_v), draw(batch, heads, tokens)]
    h, i, j = torch.meshgrid(torch.arange(heads) + case["head0"], torch.arange(tokens),
                             torch.arange(tokens), indexing="ij")
    counts = count(i, j, h).to(device)

    def evaluate_plain(kind):
        return _evaluate(lambda q, k, v: _plain(q, k, v, counts, dim ** -0.5),
                         [t.to(kind) for t in inputs], [t.to(kind) for t in gradients])

    def attend(q, k, v):
        q, k, v = (plan.gather(plan.fit(t)) for t in (q, k, v))
        o, lse = hra_attention(q, k, v, plan, return_lse=True)
        return plan.scatter(o), lse.new_zeros(batch, heads, tokens).index_copy(2, plan.row_tokens,
                                                                               lse)

    def own(results):  # o, lse, dq, dk, dv
        return [plan.take(t, 2 if n == 1 else 1) for n, t in enumerate(results)]

    results = _evaluate(attend, inputs, [gradients[0], gradients[1].to(plan._sums())])
    plan.comm.wait()
    for n, t in enumerate(results):
        others = t.index_fill(2 if n == 1 else 1, plan.row_tokens, 0)
        assert not others.any(), "written where other ranks have their rows"
    results, truth = own(results), own(evaluate_plain(torch.float64))
    if dtype == torch.float64:
        # Truth is the plain evaluation in f64 itself: its error is that in f32, shrunk.
        shrink = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        plain = [_off(p, t) * shrink for p, t in zip(own(evaluate_plain(torch.float32)), truth)]
    else:
        plain = [_off(p, t) for p, t in zip(own(evaluate_plain(dtype)), truth)]
    return [(_off(r, t), p) for r, t, p in zip(results, truth, plain)]


def _say(line):
    """On one rank."""
    if not under_torchrun() or os.environ["RANK"] == "0":
        print(line, flush=True)


def _compare(device, comm=None):
    """Every case in every type; a result may err twice as much as the plain evaluation, and by two
    roundings. Prints a row for each; returns the number that failed."""
    failed = 0
    kinds = [kind for kind in TYPES if device.type == "cpu" or kind != torch.float64]
    for mask, count, case in _CASES:
        for kind in kinds:
            errors = sum(of_all(_evaluate_case(mask, count, dict(case), kind, device, comm)), [])
            rounding = torch.finfo(kind).eps
            good = all(mine <= 2 * plain + 2 * rounding for mine, plain in errors)
            failed += not good
            worst = max(errors, key=lambda e: e[0] / (2 * e[1] + 2 * rounding))
            _say(f"{device.type:5}{TYPE_NAMES[kind]:5}{'ok' if good else 'FAILED':8}"
                 f"{worst[0]:<10.2g}{worst[1]:<10.2g}{mask}  {case or ''}")
    return failed


# What only several ranks have: larger problems, cut up in every way.
_CUTS = [
    ("full", {"tokens": 4100}),
    ("causal", {"tokens": 4100, "shard": "contiguous"}),
    ("causal", {"tokens": 4100, "shard": "zigzag", "batch": 2}),
    ("causal & window(511,0)", {"tokens": 4100, "shard": "balanced"}),
    ("causal & window(511,0)", {"tokens": 4100, "schedule": "halo"}),
    ("causal", {"tokens": 4100, "schedule": "heads"}),
    ("dilated(1024,4,0,both)", {"tokens": 4100, "order": "residues:1024:4", "schedule": "ring"}),
    ("longnet(256:1, 1024:4)", {"tokens": 4000, "order": "snake"}),
    ("grid(5,5)", {"grid": (64, 64), "order": "hilbert"}),
    ("grid(5,5)", {"grid": (64, 64), "order": "boxes:8x16", "shard": "balanced"}),
]


def _compare_cuts(device, comm):
    """All that one rank computes, in f32, against the rows of several."""
    failed = 0
    for mask, case in _CUTS:
        sizes = {"heads": 4, "heads_kv": 2, "dim": 64, "dtype": torch.float32, **case}
        one = Plan(mask, backend=device.type, **sizes)
        plan = Plan(mask, comm=comm, **sizes)
        slots = plan.row_index()[0]
        seed = torch.Generator().manual_seed(3)

        def draw(*shape):
            return torch.randn(one.batch, *shape, generator=seed).to(device)
        inputs = [draw(one.tokens, heads, 64) for heads in (4, 2, 2)]
        gradients = [draw(one.tokens, 4, 64), draw(4, one.tokens)]

        def own(tensors, sums):  # sums: which one has its tokens in the last dimension
            return [t.index_select(2 if n == sums else 1, slots) for n, t in enumerate(tensors)]

        def evaluate(plan, *tensors):
            return _evaluate(lambda *qkv: hra_attention(*qkv, plan, return_lse=True), *tensors)
        truth = own(evaluate(one, inputs, gradients), 1)
        results = evaluate(plan, own(inputs, None), own(gradients, 1))
        comm.wait()
        # Sums of thousands of products, in another order.
        bound = 256 * torch.finfo(torch.float32).eps
        off = max(sum(of_all([_off(r, t) for r, t in zip(results, truth)]), []))
        failed += not off <= bound
        _say(f"{device.type:5}{'f32':5}{'ok' if off <= bound else 'FAILED':8}{off:<10.2g}"
             f"{bound:<10.2g}{mask}  {case}, {plan.info['shard']}, {plan.info['schedule']}")
    return failed


def _compare_large(device, comm):
    """Many tiles for each multiprocessor and several rounds, bf16, the rows of several ranks beside
    one rank on the portable backend. What goes wrong in one tile of a thousand shows here only."""
    failed, limit = 0, 4 * torch.finfo(torch.bfloat16).eps  # each result is rounded to half of eps
    sizes = {"heads": 16, "dim": 128, "tokens": 16384, "dtype": torch.bfloat16}
    for mask in ("full", "causal"):
        one, plan = Plan(mask, backend="cuda", **sizes), Plan(mask, comm=comm, **sizes)
        slots, seed = plan.row_index()[0], torch.Generator().manual_seed(4)
        whole = [torch.randn(1, 16384, 16, 128, generator=seed).to(device, torch.bfloat16)
                 for _ in range(4)]

        def evaluate(plan, *tensors):
            *qkv, gradient = tensors
            qkv = [t.detach().requires_grad_() for t in qkv]
            o = hra_attention(*qkv, plan)
            return [o.detach(), *torch.autograd.grad(o, qkv, gradient)]
        truth = [t.index_select(1, slots).float() for t in evaluate(one, *whole)]
        own, off = [t.index_select(1, slots) for t in whole], 0
        for _ in range(4):
            for result, true in zip(evaluate(plan, *own), truth):
                size, apart = (t.unflatten(1, (-1, 128)).transpose(2, 3).flatten(3).norm(dim=3)
                               for t in (true, result.float() - true))
                off = max(off, (apart / size.clamp_min(size.mean() / 100)).max().item())
        comm.wait()
        off = max(of_all(off))
        failed += not off <= limit
        _say(f"{device.type:5}{'bf16':5}{'ok' if off <= limit else 'FAILED':8}{off:<10.2g}"
             f"{limit:<10.2g}{mask}  {sizes['tokens']} tokens, {plan.info['backend']}")
    return failed


# The other checks are about PyTorch. Each gets tensors (1, rows, 2, 32) and a causal plan.

def _gradients(plan, q, k, v, do):
    o = hra_attention(q, k, v, plan)
    return o, *torch.autograd.grad(o, (q, k, v), do)


def _same(results, others):
    assert all(torch.equal(a, b) for a, b in zip(results, others, strict=True)), "other bits"


def _refused(error, words, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except error as caught:
        assert words in str(caught), f"the message is: {caught}"
    else:
        raise AssertionError(f"{words}: was not refused")


def _check_layouts(plan, q, k, v, do):
    """Tensors and gradients that lie in another way give the same bits."""
    want = _gradients(plan, q, k, v, do)

    def lay(tensor, *axes):  # the same tensor, `axes` from the outermost in memory to the innermost
        back = torch.tensor(axes).argsort().tolist()
        return tensor.detach().permute(axes).contiguous().permute(back).requires_grad_()
    for axes in ((1, 0, 2, 3), (0, 2, 1, 3)):  # (seq, batch, head, dim), (batch, head, seq, dim)
        _same(want, _gradients(plan, *(lay(t, *axes) for t in (q, k, v)), lay(do, *axes)))
    _same(want, _gradients(plan, q, k, v, lay(do, 0, 1, 3, 2)))
    one = torch.ones((), device=q.device, dtype=q.dtype)
    _same(_gradients(plan, q, k, v, torch.ones_like(do)),
          _gradients(plan, q, k, v, one.expand_as(do)))


def _check_autograd(plan, q, k, v, do):
    """Backward twice, under checkpoint, for one input only, and not at all."""
    want = _gradients(plan, q, k, v, do)
    o = hra_attention(q, k, v, plan)
    for _ in range(2):
        _same(want[1:], torch.autograd.grad(o, (q, k, v), do, retain_graph=True))
    for reentrant in (False, True):
        o = checkpoint(hra_attention, q, k, v, plan, use_reentrant=reentrant)
        o.backward(do)
        _same(want[1:], (q.grad, k.grad, v.grad))
        q.grad = k.grad = v.grad = None
    _same(want[2:3], torch.autograd.grad(hra_attention(q.detach(), k, v.detach(), plan), k, do))
    with torch.no_grad():
        o, lse = hra_attention(q, k, v, plan, return_lse=True)
    _same(want[:1], (o,))
    assert not o.requires_grad and lse.shape == (1, 2, plan.rows)
    lse = hra_attention(q, k, v, plan, return_lse=True)[1]
    assert all(g.isfinite().all() for g in torch.autograd.grad(lse.sum(), (q, k)))


def _check_refusals(plan, q, k, v, do):
    """What cannot be right is refused in words."""
    backend = plan.device.type
    sizes = {"tokens": 8, "heads": 1, "dim": 8, "backend": backend}
    _refused(HraError, "character 1", Plan, "casual", **sizes)
    _refused(HraError, "hilbret", Plan, "full", order="hilbret", **sizes)
    _refused(HraError, "300", Plan, "full", **{**sizes, "dim": 300})
    _refused(ValueError, "one of", Plan, "full", saved="all", **sizes)
    _refused(ValueError, "schedule is 'star'", Plan, "full", schedule="star", **sizes)
    _refused(HraError, "wants 2 K/V heads", Plan, "full", schedule="heads", **sizes)
    _refused(ValueError, str((1, plan.rows, 2, 32)), hra_attention, q[:, 1:], k, v, plan)
    _refused(ValueError, "torch.float64", hra_attention, q, k.double(), v, plan)
    turned = v.transpose(1, 3).contiguous().transpose(1, 3)
    _refused(ValueError, "not contiguous", hra_attention, q, k, turned, plan)
    if backend == "cuda":
        shifted = torch.empty(q.numel() + 1, device=q.device, dtype=q.dtype)[1:].view_as(q)
        _refused(ValueError, "multiples of 16", hra_attention, q, k, shifted.copy_(v), plan)
    # None of that has left anything behind.
    _gradients(plan, q, k, v, do)


def _check_module(plan, q, k, v, do):
    """A module takes tensors that lie anyhow, shares its plans, and can be copied."""
    attend = HraAttention(str(Mask("(causal) & full", tokens=300)))
    _same(_gradients(plan, q, k, v, do)[:1], (attend(q, k, v),))
    assert HraAttention("causal & full").plan(q, k, v) is attend.plan(q, k, v)
    along = HraAttention("causal", order=torch.arange(299, -1, -1))
    kind = torch.finfo(q.dtype)
    assert _off(along(q, k, v), attend(q, k, v)) <= 8 * kind.eps
    narrow = [t[..., :9] for t in (q, k, v)]  # 9 channels are no multiple of 16 bytes
    o = along(*narrow)
    assert _off(o, attend(*(t.contiguous() for t in narrow))) <= 8 * kind.eps
    o.backward(do[..., :9])
    rows = [along.plan(*narrow).fit(t) for t in narrow]
    lse = hra_attention(*rows, along.plan(*narrow), return_lse=True)[1]
    assert torch.autograd.grad(lse.sum(), rows[0])[0].isfinite().all()
    assert q.grad.shape == q.shape and q.grad[..., 9:].count_nonzero() == 0
    q.grad = k.grad = v.grad = None
    _same((along(q, k, v),), (copy.deepcopy(along)(q, k, v),))
    plain = pickle.loads(pickle.dumps(attend))
    _same((attend(q, k, v),), (plain(q, k, v),))
    _check_rows(q, k, v, do)


def _check_rows(q, k, v, do):
    """By token or by slot: the same to within rounding, gradients too."""
    sizes = {"mask": "window(40,9)", "tokens": 300, "heads": q.shape[2], "dim": q.shape[3], "dtype": q.dtype,
             "heads_kv": k.shape[2], "dim_v": v.shape[3], "batch": q.shape[0], "order": "residues:100:4",
             "backend": DEFAULT_BACKENDS[q.device.type]}
    slots, tokens = Plan(**sizes), Plan(**sizes, rows="tokens")
    assert not slots.info["reorders_backward"] and tokens.info["reorders_backward"]
    assert tokens.natural and not slots.natural
    o, *gradients = _gradients(slots, *(slots.gather(t) for t in (q, k, v, do)))
    want = [slots.scatter(t) for t in (o, *gradients)]
    kind = torch.finfo(q.dtype)
    for got, expected in zip(_gradients(tokens, q, k, v, do), want):
        assert _off(got, expected) <= 8 * kind.eps


def _check_streams(plan, q, k, v, do):
    """The same bits on another stream and in a replayed graph, forward and backward."""
    want = _gradients(plan, q, k, v, do)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        aside = _gradients(plan, q, k, v, do)  # warms up for the capture too
    torch.cuda.current_stream().wait_stream(side)
    _same(want, aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Leaves of its own: those from outside belong to the legacy stream, which may not wait.
        captured = _gradients(plan, *(t.detach().requires_grad_() for t in (q, k, v)), do)
    for _ in range(2):
        for result in captured:
            result.fill_(torch.nan)
        graph.replay()
        _same(want, captured)


def _check_ranks(plan, q, k, v, do):
    """The ranks' rows are all tokens, a module takes them, and other plans are a mismatch."""
    comm, tokens = plan.comm, torch.arange(300)
    assert torch.equal(torch.cat([plan.row_index(r)[1] for r in range(comm.ranks)]).sort()[0].cpu(),
                       tokens)
    assert torch.equal(plan.take(tokens, 0), plan.row_tokens.cpu())
    _refused(HraError, "HRA_ERR_ARG", plan.row_index, comm.ranks)
    whole = torch.randn(1, 300, 3, 8, generator=torch.Generator().manual_seed(4))
    mine = plan.gather(whole.to(q.device))
    _same((plan.take(whole.to(q.device)),), (mine,))
    _same((whole,), (sum(of_all(plan.scatter(mine).cpu())),))

    attend = HraAttention("causal", tokens=300, shard="contiguous", comm=comm)
    rows = attend.plan_for(heads=2, dim=32, dtype=q.dtype).rows
    assert rows == plan.rows and attend.plan_for(heads=2, dim=32, dtype=q.dtype).comm is comm
    o = attend(q, k, v)
    _same(_gradients(plan, q, k, v, do), (o, *torch.autograd.grad(o, (q, k, v), do)))
    other = HraAttention("causal", tokens=300, shard="contiguous", comm=comm)
    assert other.plan(q, k, v) is attend.plan(q, k, v)
    _refused(ValueError, "tokens or grid", HraAttention, "causal", comm=comm)

    if comm.ranks > 1:
        mask = "full" if comm.rank == 0 else "causal"
        _refused(HraError, "HRA_ERR_MISMATCH", Plan, mask, tokens=300, heads=2, dim=32, comm=comm)
    assert comm.failure() is None
    _gradients(plan, q, k, v, do)


def _check_end(comm):
    """A communicator that has been destroyed, and its plans, say so."""
    plan = Plan("full", tokens=300, heads=2, dim=32, dtype=torch.float32, comm=comm)
    q = torch.zeros(1, plan.rows, 2, 32, device=comm.device)
    hra_attention(q, q, q, plan)
    comm.destroy()
    comm.destroy()
    _refused(ValueError, "plan has been destroyed", hra_attention, q, q, q, plan)
    _refused(ValueError, "communicator has been destroyed", comm.wait)
    _refused(ValueError, "communicator has been destroyed", Plan, "full", tokens=300, heads=2,
             dim=32, comm=comm)


def _run(check, device, *arguments):
    """Prints a row for a check; returns 1 if it failed."""
    failed = False
    try:
        check(*arguments)
    except Exception:
        failed = True
        traceback.print_exc(file=sys.stdout)
    failed = any(of_all(failed))
    _say(f"{device.type:5}{'':5}{'FAILED' if failed else 'ok':8}{'':20}{check.__doc__}")
    return int(failed)


def _check_all(device, comm=None):
    """Prints a row for each check; returns the number that failed."""
    failed = 0
    checks = [_check_layouts, _check_autograd, _check_refusals,
              _check_ranks if comm else _check_module]
    if device.type == "cuda":
        checks.append(_check_streams)
    for check in checks:
        seed = torch.Generator().manual_seed(2)
        plan = Plan("causal", tokens=300, heads=2, dim=32, dtype=torch.float32, comm=comm,
                    shard="contiguous", backend=device.type)  # every rank has rows
        q, k, v, do = (plan.take(torch.randn(1, 300, 2, 32, generator=seed)).to(device)
                       for _ in range(4))
        failed += _run(check, device, plan, *(t.requires_grad_() for t in (q, k, v)), do)
    return failed


_LEGEND = ("Worst of o, lse, dq, dk, dv: relative errors of HRA and of the plain evaluation in the "
           f"same type\n{'on':5}{'type':5}{'':8}{'HRA':10}{'plain':10}mask")


def _main_ranks():
    """Over every kind of communicator. A rank that fails ends the test with an exception, and
    torchrun then ends the others."""
    join()
    device = _device("cuda")
    _say(f"libhra {VERSION} from {_lib._name}, PyTorch {torch.__version__}, "
         f"{torch.distributed.get_world_size()} ranks, {torch.cuda.get_device_name(device)}")
    failed = 0
    for options in ({}, {"transport": "nccl"}, {"borrow": True}):
        comm = Comm.over(timeout=120, setup_timeout=180, **options)
        transport = Plan("full", tokens=1, heads=1, dim=8, comm=comm).info["transport"]
        _say(f"\nComm.over({', '.join(f'{k}={v!r}' for k, v in options.items())}): {transport}\n"
             + _LEGEND)
        failed += _compare(device, comm) + _compare_cuts(device, comm)
        failed += _compare_large(device, comm) + _check_all(device, comm)
        failed += _run(_check_end, device, comm)
    _say(f"{failed} failed" if failed else "all ok")
    torch.distributed.destroy_process_group()
    return 1 if failed else 0


def main():
    if under_torchrun():
        return _main_ranks()
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    names = [torch.cuda.get_device_name(d) if d.type == "cuda" else "CPU" for d in devices]
    print(f"libhra {VERSION} from {_lib._name}, PyTorch {torch.__version__}, {', '.join(names)}\n"
          + _LEGEND)
    failed = sum(_compare(device) + _check_all(device) for device in devices)
    print(f"{failed} failed" if failed else "all ok")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
