// The asynchronous proxy: bulk copies beside plain accesses. Published bugs, reduced. Each kernel is a template: REPAIRED is false as
// reported, true as repaired.
typedef unsigned long long u64;
__device__ unsigned at(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ void init(u64 *b, int n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at(b)), "r"(n) : "memory"); }
__device__ void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ void fence_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ void fence_proxy_all() { asm volatile("fence.proxy.async;" ::: "memory"); }
__device__ void arrive(u64 *b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at(b)) : "memory"); }
__device__ void wait(u64 *b, int parity) {
  asm volatile("{ .reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra W; }" ::"r"(at(b)), "r"(parity) : "memory");
}
__device__ void fetch(void *to, const void *from, int bytes, u64 *b) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at(b)), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(at(to)), "l"(from), "r"(bytes), "r"(at(b)) : "memory");
}
__device__ void put(void *to, const void *from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(at(from)), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Warp 0 fetches into stages that warp 1 reads and gives back, without a fence between the reads and the next fetch.
template <bool REPAIRED> __global__ void stages(const float *x, float *y, int rounds) {
  __shared__ alignas(128) float stage[2][32];
  __shared__ u64 full[2], empty[2];
  if (threadIdx.x == 0) { for (int s = 0; s < 2; s++) { init(full + s, 1); init(empty + s, 1); } fence_init(); fence_proxy(); }
  __syncthreads();
  if (threadIdx.x == 0) for (int r = 0; r < rounds; r++) {
    if (r >= 2) wait(empty + r % 2, (r / 2 - 1) & 1);
    fetch(stage[r % 2], x + 32 * r, 128, full + r % 2);
  }
  if (threadIdx.x >= 32) {
    float sum = 0;
    for (int r = 0; r < rounds; r++) {
      wait(full + r % 2, (r / 2) & 1);
      sum += stage[r % 2][threadIdx.x % 32];
      if (REPAIRED) fence_proxy();
      __syncwarp();
      if (threadIdx.x == 32) arrive(empty + r % 2);
    }
    y[threadIdx.x % 32] = sum;
  }
}

// One warp fetches, reads and fetches again into the same two stages.
template <bool REPAIRED> __global__ void ping_pong(const float *x, float *y, int rounds) {
  __shared__ alignas(128) float stage[2][32];
  __shared__ u64 full[2];
  if (threadIdx.x == 0) { init(full, 1); init(full + 1, 1); fence_init(); fence_proxy(); }
  __syncwarp();
  if (threadIdx.x == 0) { fetch(stage[0], x, 128, full); fetch(stage[1], x + 32, 128, full + 1); }
  float sum = 0;
  for (int r = 0; r < rounds; r++) {
    wait(full + r % 2, (r / 2) & 1);
    sum += stage[r % 2][threadIdx.x];
    if (REPAIRED) fence_proxy();
    __syncwarp();
    if (threadIdx.x == 0 && r + 2 < rounds) fetch(stage[r % 2], x + 32 * (r + 2), 128, full + r % 2);
  }
  y[threadIdx.x] = sum;
}

// The state is written by plain stores, then stored by a bulk copy after a mere barrier.
template <bool REPAIRED> __global__ void store_state(float *y) {
  __shared__ alignas(128) float state[64];
  state[threadIdx.x] = threadIdx.x;
  if (REPAIRED) fence_proxy();
  __syncthreads();
  if (threadIdx.x == 0) { put(y, state, 256); asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
}

// A stage is filled again while the bulk store of the round before the last still reads it.
template <bool REPAIRED> __global__ void send_stages(float *y, int rounds) {
  __shared__ alignas(128) float stage[2][32];
  for (int r = 0; r < rounds; r++) {
    if (threadIdx.x == 0) {
      if (REPAIRED) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
      else asm volatile("cp.async.bulk.wait_group.read 2;" ::: "memory");
    }
    __syncwarp();
    stage[r % 2][threadIdx.x] = r + threadIdx.x;
    fence_proxy();
    __syncwarp();
    if (threadIdx.x == 0) put(y + 32 * r, stage[r % 2], 128);
  }
  if (threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// A rank polls a flag, then fetches the peer's rows by a bulk copy without a fence between the two.
template <bool REPAIRED> __global__ void rows_write(float *rows, unsigned *flag) {
  rows[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) asm volatile("st.release.sys.global.u32 [%0], 1;" ::"l"(flag) : "memory");
}
template <bool REPAIRED> __global__ void rows_fetch(const float *rows, unsigned *flag, float *y) {
  __shared__ alignas(128) float stage[32];
  __shared__ u64 full;
  if (threadIdx.x == 0) {
    init(&full, 1); fence_init();
    unsigned seen;
    do asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory"); while (seen != 1);
    if (REPAIRED) fence_proxy_all();
    fetch(stage, rows, 128, &full);
  }
  __syncwarp();
  wait(&full, 0);
  y[threadIdx.x] = stage[threadIdx.x];
}
