// Flags between devices and blocks: published bugs, reduced. Each kernel is a template: REPAIRED is false as reported, true as repaired.
__device__ void store_release(unsigned *p, unsigned v) { asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
__device__ void store_relaxed(unsigned *p, unsigned v) { asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
__device__ unsigned load_acquire(unsigned *p) { unsigned v; asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v; }
__device__ unsigned load_acquire_gpu(unsigned *p) { unsigned v; asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v; }
__device__ unsigned load_relaxed(unsigned *p) { unsigned v; asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v; }

// The head of a queue is published by thread 0 while other threads still write the last packet.
template <bool REPAIRED> __global__ void fifo_send(int *packets, unsigned *head, int n) {
  for (int step = 0; step < 2; step++) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) packets[step * n + i] = step + i;
    if (REPAIRED) __syncthreads();
    if (threadIdx.x == 0) store_release(head, step + 1);
  }
}
template <bool REPAIRED> __global__ void fifo_receive(int *packets, unsigned *head, int *out, int n) {
  for (unsigned step = 0; step < 2; step++) {
    if (threadIdx.x == 0) while (load_acquire(head) <= step);
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[step * n + i] = packets[step * n + i];
    __syncthreads();
  }
}

// The lock of a tile is set with gpu scope, but another GPU polls it.
template <bool REPAIRED> __global__ void tile_ready(float *tile, unsigned *lock) {
  tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned old;
    if (REPAIRED) asm volatile("atom.exch.release.sys.global.b32 %0, [%1], 1;" : "=r"(old) : "l"(lock) : "memory");
    else asm volatile("atom.exch.release.gpu.global.b32 %0, [%1], 1;" : "=r"(old) : "l"(lock) : "memory");
  }
}
template <bool REPAIRED> __global__ void tile_wait(float *tile, unsigned *lock, float *out) {
  if (threadIdx.x == 0) {
    unsigned seen;
    do asm volatile("atom.add.acquire.sys.global.u32 %0, [%1], 0;" : "=r"(seen) : "l"(lock) : "memory"); while (seen != 1);
  }
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

// Every call signals by the same value, so the second call takes the signal of the first for its own.
template <bool REPAIRED> __global__ void calls_produce(float *tiles, unsigned *lock) {
  for (unsigned call = 1; call <= 2; call++) {
    tiles[call * 32 + threadIdx.x] = call;
    __syncthreads();
    if (threadIdx.x == 0) store_release(lock, REPAIRED ? call : 1);
  }
}
template <bool REPAIRED> __global__ void calls_consume(float *tiles, unsigned *lock, float *out) {
  for (unsigned call = 1; call <= 2; call++) {
    if (threadIdx.x == 0) while (REPAIRED ? load_acquire(lock) < call : load_acquire(lock) != 1);
    __syncthreads();
    out[threadIdx.x] += tiles[call * 32 + threadIdx.x];
    __syncthreads();
  }
}

// A rank writes the payload of its next call while the peer still reads the last one: ready is announced, done is not.
template <bool REPAIRED> __global__ void one_shot(float *mine, float *theirs, unsigned *my_ready, unsigned *their_ready, unsigned *my_done, unsigned *their_done, float *out) {
  for (unsigned call = 1; call <= 3; call++) {
    if (REPAIRED) {
      if (threadIdx.x == 0) while (load_acquire(their_done) < call - 1);
      __syncthreads();
    }
    mine[threadIdx.x] = call * threadIdx.x;
    __syncthreads();
    if (threadIdx.x == 0) { store_release(my_ready, call); while (load_acquire(their_ready) < call); }
    __syncthreads();
    out[threadIdx.x] = mine[threadIdx.x] + theirs[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) store_release(my_done, call);
  }
}

// The start barrier of an all-reduce is relaxed on both sides.
template <bool REPAIRED> __global__ void start_barrier(float *mine, float *theirs, unsigned *my_flag, unsigned *their_flag, float *out) {
  mine[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (REPAIRED) { store_release(my_flag, 1); while (load_acquire(their_flag) != 1); }
    else { store_relaxed(my_flag, 1); while (load_relaxed(their_flag) != 1); }
  }
  __syncthreads();
  out[threadIdx.x] = mine[threadIdx.x] + theirs[threadIdx.x];
}

// Flags of an all-reduce are volatile, without a fence at either side.
template <bool REPAIRED> __global__ void volatile_flags(float *mine, float *theirs, volatile unsigned *my_flag, volatile unsigned *their_flag, float *out) {
  mine[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (REPAIRED) __threadfence_system();
    *my_flag = 1;
    while (*their_flag != 1);
    if (REPAIRED) __threadfence_system();
  }
  __syncthreads();
  out[threadIdx.x] = mine[threadIdx.x] + theirs[threadIdx.x];
}

// Each rank sets one byte of a word that all poll as a whole; accesses of unequal sizes are not morally strong.
template <bool REPAIRED> __global__ void byte_flags(unsigned char *bytes, unsigned *words, int rank) {
  if (threadIdx.x) return;
  if (REPAIRED) {
    store_release(words + rank, 1);
    while (load_acquire(words) != 1 || load_acquire(words + 1) != 1);
  } else {
    __threadfence_system();
    ((volatile unsigned char *)bytes)[rank] = 1;
    while (*(volatile unsigned short *)bytes != 0x0101);
    __threadfence_system();
  }
}

// The barrier between GPUs polls by a volatile load; its fence was removed.
template <bool REPAIRED> __global__ void nvlink_barrier(float *mine, float *theirs, int *my_signals, int *their_signals, float *out) {
  mine[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence_system();
    atomicAdd_system(their_signals, 1);
    if (REPAIRED) while (load_acquire((unsigned *)my_signals) != 1);
    else while (*(volatile int *)my_signals != 1);
  }
  __syncthreads();
  out[threadIdx.x] = mine[threadIdx.x] + theirs[threadIdx.x];
}

// A signal that another GPU stores is polled with gpu scope.
template <bool REPAIRED> __global__ void remote_signal(float *data, unsigned *flag) {
  data[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) store_release(flag, 1);
}
template <bool REPAIRED> __global__ void poll_signal(float *data, unsigned *flag, float *out) {
  if (threadIdx.x == 0) while ((REPAIRED ? load_acquire(flag) : load_acquire_gpu(flag)) != 1);
  __syncthreads();
  out[threadIdx.x] = data[threadIdx.x];
}

// The tail of a channel is published by a relaxed store: nothing makes the rows of the other warps visible.
template <bool REPAIRED> __global__ void cheap_fence(float *rows, unsigned *tail) {
  rows[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) { if (REPAIRED) store_release(tail, 1); else store_relaxed(tail, 1); }
}
template <bool REPAIRED> __global__ void channel_read(float *rows, unsigned *tail, float *out) {
  if (threadIdx.x == 0) while (load_acquire(tail) != 1);
  __syncthreads();
  out[threadIdx.x] = rows[threadIdx.x];
}

// Blocks add to a sum in turn. The semaphore is advanced without a fence before it.
template <bool REPAIRED> __global__ void serial_blocks(float *sum, unsigned *semaphore) {
  if (threadIdx.x == 0) while (load_acquire_gpu(semaphore) != blockIdx.x);
  __syncthreads();
  sum[threadIdx.x] += blockIdx.x + 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (REPAIRED) __threadfence();
    atomicExch(semaphore, blockIdx.x + 1);
  }
}

// Block 0 advances the flag for the next call before the other blocks have read it for this call.
template <bool REPAIRED> __global__ void flag_in_kernel(unsigned *flag, unsigned *arrived, unsigned *out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = *flag;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (REPAIRED) {
      __threadfence();
      atomicAdd(arrived, 1);
    }
    if (blockIdx.x == 0) {
      if (REPAIRED) while (load_acquire_gpu(arrived) != gridDim.x);
      *flag = *flag + 1;
    }
  }
}

// At a barrier each rank adds to its own counter, subtracts from the peer's, and waits until its own is not positive. If
// barriers of two batches are in flight at once, an arrival at one of them counts for the other.
__global__ void balanced_barrier(float *mine, float *theirs, int *my_count, int *their_count, float *out, int work) {
  for (int i = 0; i < work; i++) mine[threadIdx.x] += 1;
  mine[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence_system();
    atomicAdd_system(my_count, 1);
    atomicSub_system(their_count, 1);
    while ((int)load_acquire((unsigned *)my_count) > 0);
  }
  __syncthreads();
  out[threadIdx.x] = mine[threadIdx.x] + theirs[threadIdx.x];
}
