// A product of CUTLASS 3's interface for sm_90a: one warp fetches tiles by tensor maps, four multiply by wgmma.
// D = A B^T + 2 C, with A and B of float16 and C and D of float32. bench/ptx_cutlass.py runs it.
#include <type_traits>
#include <cutlass/cutlass.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/device_kernel.h>
using namespace cute;
using Sm = cutlass::arch::Sm90;
using Op = cutlass::arch::OpClassTensorOp;
using Rows = cutlass::layout::RowMajor;
using Columns = cutlass::layout::ColumnMajor;
using TileShape = Shape<_64, _64, _64>;
using ClusterShape = Shape<_1, _1, _1>;
using Epilogue = cutlass::epilogue::collective::CollectiveBuilder<
    Sm, Op, TileShape, ClusterShape, cutlass::epilogue::collective::EpilogueTileAuto, float, float, float, Rows, 4,
    float, Rows, 4, cutlass::epilogue::NoSmemWarpSpecialized>::CollectiveOp;
using Mainloop = cutlass::gemm::collective::CollectiveBuilder<
    Sm, Op, cutlass::half_t, Rows, 8, cutlass::half_t, Columns, 8, float, TileShape, ClusterShape,
    cutlass::gemm::collective::StageCount<2>, cutlass::gemm::KernelTmaWarpSpecialized>::CollectiveOp;
using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>;
struct alignas(64) Map { char bytes[128]; };

__device__ void copy(void *to, const Map *from) {
    for (int i = 0; i < 128; i++) ((char *)to)[i] = from->bytes[i];
}

// What the host's GemmUniversalAdapter does: the structure that the kernel takes by value.
__global__ void prepare(Kernel::Params *out, const Map *a, const Map *b, const float *c, float *d, int m, int n, int k) {
    Kernel::Params &p = *out;
    p.problem_shape = make_shape(m, n, k, 1);
    copy(&p.mainloop.tma_load_a, a);
    copy(&p.mainloop.tma_load_b, b);
    p.mainloop.tma_transaction_bytes = Mainloop::TmaTransactionBytes;
    p.epilogue.thread.alpha = 1.0f;
    p.epilogue.thread.beta = 2.0f;
    p.epilogue.ptr_C = c;
    p.epilogue.ptr_D = d;
    get<0>(p.epilogue.dC) = n;
    get<0>(p.epilogue.dD) = n;
}

__global__ void sizes(int *out) {
    out[0] = sizeof(Kernel::Params);
    out[1] = Kernel::SharedStorageSize;
    out[2] = Kernel::MaxThreadsPerBlock;
}
