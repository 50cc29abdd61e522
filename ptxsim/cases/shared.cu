// Shared memory of a block: published bugs, reduced. Each kernel is a template: REPAIRED is false as reported, true as repaired.

// A histogram is cleared for the next round while slow threads still read the counts of this round.
template <bool REPAIRED> __global__ void histogram_rounds(const int *keys, int *out) {
  __shared__ int counts[64];
  int left = 0;
  for (int round = 0; round < 3; round++) {
    if (threadIdx.x < 64) counts[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(counts + ((keys[threadIdx.x] >> round) & 63), 1);
    __syncthreads();
    left += counts[(round + 1) & 63];
    if (REPAIRED) __syncthreads();
  }
  out[threadIdx.x] = left;
}

// Warps write their partial sums of the next token while others still read the factor of the last.
template <bool REPAIRED> __global__ void norm_of_tokens(const float *x, float *y) {
  __shared__ float partial[4];
  for (int token = 0; token < 3; token++) {
    float v = x[token * blockDim.x + threadIdx.x], s = v * v;
    for (int d = 16; d; d >>= 1) s += __shfl_xor_sync(0xffffffff, s, d);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x == 0) partial[0] = rsqrtf(partial[0] + partial[1] + partial[2] + partial[3]);
    __syncthreads();
    y[token * blockDim.x + threadIdx.x] = v * partial[0];
    if (REPAIRED) __syncthreads();
  }
}

// A list of rows is loaded again for the next tile without waiting for the threads that use it.
template <bool REPAIRED> __global__ void rows_of_tiles(const int *ids, const float *x, float *y) {
  __shared__ int rows[64];
  for (int tile = 0; tile < 3; tile++) {
    rows[threadIdx.x] = ids[tile * 64 + threadIdx.x];
    __syncthreads();
    y[tile * 64 + threadIdx.x] = x[rows[63 - threadIdx.x]];
    if (REPAIRED) __syncthreads();
  }
}

// The first lanes add the sums of the warps by shuffles, and read lanes that do not take part.
template <bool REPAIRED> __global__ void absent_lanes(const float *x, float *y) {
  __shared__ float sums[4];
  float s = x[threadIdx.x];
  for (int d = 16; d; d >>= 1) s += __shfl_down_sync(0xffffffff, s, d);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = s;
  __syncthreads();
  unsigned lanes = __ballot_sync(0xffffffff, REPAIRED || threadIdx.x < 4);
  if (threadIdx.x < (REPAIRED ? 32 : 4)) {
    s = threadIdx.x < 4 ? sums[threadIdx.x] : 0;
    for (int d = 16; d; d >>= 1) s += __shfl_down_sync(lanes, s, d);
  }
  if (threadIdx.x == 0) y[0] = s;
}

// Lanes read what other lanes of the warp wrote, without __syncwarp.
template <bool REPAIRED> __global__ void warp_result(const float *x, float *y) {
  __shared__ float value[32];
  if (threadIdx.x == 0) value[31] = x[0] + x[1];
  if (REPAIRED) __syncwarp();
  y[threadIdx.x] = value[31];
}
template <bool REPAIRED> __global__ void warp_tree(const float *x, float *y) {
  __shared__ float sums[64];
  sums[threadIdx.x] = x[threadIdx.x];
  sums[threadIdx.x + 32] = x[threadIdx.x + 32];
  if (REPAIRED) __syncwarp();
  for (int d = 32; d; d >>= 1) {
    float v = (int)threadIdx.x < d ? sums[threadIdx.x + d] : 0;
    if (REPAIRED) __syncwarp();
    if ((int)threadIdx.x < d) sums[threadIdx.x] += v;
    if (REPAIRED) __syncwarp();
  }
  if (threadIdx.x == 0) y[0] = sums[0];
}
template <bool REPAIRED> __global__ void last_levels(const float *x, float *y) {
  __shared__ float sums[128];
  sums[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  for (int d = 64; d; d >>= 1) {
    float v = (int)threadIdx.x < d ? sums[threadIdx.x + d] : 0;
    if (d > 16 || REPAIRED) __syncthreads();
    if ((int)threadIdx.x < d) sums[threadIdx.x] += v;
    if (d > 16 || REPAIRED) __syncthreads();
  }
  if (threadIdx.x == 0) y[0] = sums[0];
}
