// Launches: streams, programmatic launches, grid barriers. Published bugs, reduced. Each kernel is a template: REPAIRED is false as
// reported, true as repaired. Bugs of the order of launches have plain kernels; their launches differ.
__device__ void wait_for_grid() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

__global__ void fill(float *x, float v) { x[blockIdx.x * blockDim.x + threadIdx.x] = v; }
__global__ void add_one(float *x, float *y) { int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = x[i] + 1; }
__global__ void produce_early(float *x, float v) { let_next_begin(); x[blockIdx.x * blockDim.x + threadIdx.x] = v; }

// A product of many matrices begins early, but never waits for the kernel that makes its input.
template <bool REPAIRED> __global__ void product(float *x, float *y) {
  if (REPAIRED) wait_for_grid();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = 2 * x[i];
}

// The scheduler of tiles reads the first shape of the problem before the wait.
template <bool REPAIRED> __global__ void scheduler(int *shapes, float *x, float *y) {
  int first = 0;
  if (!REPAIRED) first = shapes[0];
  wait_for_grid();
  if (REPAIRED) first = shapes[0];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i] * first;
}
__global__ void shapes_early(int *shapes, float *x) {
  let_next_begin();
  if (blockIdx.x == 0 && threadIdx.x == 0) shapes[0] = 3;
  x[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

// One warp of a kernel with several roles loads the scale factors; only the other warps wait.
template <bool REPAIRED> __global__ void roles(float *x, float *scales, float *y) {
  __shared__ float scale;
  if (REPAIRED || threadIdx.x >= 32) wait_for_grid();
  if (threadIdx.x == 0) scale = scales[0];
  __syncthreads();
  if (threadIdx.x >= 32) y[threadIdx.x] = x[threadIdx.x] * scale;
}
__global__ void quantize_early(float *x, float *scales) {
  let_next_begin();
  if (threadIdx.x == 0) scales[0] = 2;
  x[threadIdx.x] = threadIdx.x;
}

// The middle kernel of three begins early and does not wait, so the third cannot trust that the first has ended.
template <bool REPAIRED> __global__ void middle(float *other, float v) {
  if (REPAIRED) wait_for_grid();
  let_next_begin();
  other[blockIdx.x * blockDim.x + threadIdx.x] = v;
}
__global__ void third(float *x, float *other, float *y) {
  wait_for_grid();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i] + other[i];
}

// A merge reads the partition before the wait that was to guard it.
template <bool REPAIRED> __global__ void merge(int *partitions, float *keys, float *y) {
  int at = 0;
  if (REPAIRED) { wait_for_grid(); at = partitions[blockIdx.x]; }
  else { at = partitions[blockIdx.x]; wait_for_grid(); }
  y[blockIdx.x * blockDim.x + threadIdx.x] = keys[at + threadIdx.x];
}
__global__ void partition_early(int *partitions, int n) {
  let_next_begin();
  if (threadIdx.x == 0) partitions[blockIdx.x] = blockIdx.x * n;
}

// Blocks wait for all blocks of the grid, but the device cannot hold all of them at once.
__global__ void resident(unsigned *arrived, float *x) {
  x[blockIdx.x * blockDim.x + threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrived, 1);
    unsigned seen;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrived) : "memory"); while (seen != gridDim.x);
  }
  __syncthreads();
}
