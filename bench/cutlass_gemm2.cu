// Products of CUTLASS 2's interface for sm_80: D = A B^T + 2 C. PRODUCT chooses one: 0 of float16 and 1 of int8, both by
// tensor cores, 2 of float32 without them, 3 of float16 with k shared by several blocks. bench/ptx_cutlass.py runs them.
#include <type_traits>
#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm.h>
#include <cutlass/device_kernel.h>
using cutlass::gemm::GemmShape;
using Rows = cutlass::layout::RowMajor;
using Columns = cutlass::layout::ColumnMajor;
using Swizzle = cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>;
using cutlass::arch::OpClassSimt;
using cutlass::arch::OpClassTensorOp;
using cutlass::arch::Sm80;
template <typename T, int count, typename Sum>
using Linear = cutlass::epilogue::thread::LinearCombination<T, count, Sum, Sum>;
#if PRODUCT == 1
using In = int8_t;
using Out = int32_t;
using Gemm = cutlass::gemm::device::Gemm<
    In, Rows, In, Columns, Out, Rows, int32_t, OpClassTensorOp, Sm80, GemmShape<64, 64, 64>, GemmShape<32, 32, 64>,
    GemmShape<16, 8, 32>, Linear<Out, 4, int32_t>, Swizzle, 3>;
#elif PRODUCT == 2
using In = float;
using Out = float;
using Gemm = cutlass::gemm::device::Gemm<
    In, Rows, In, Columns, Out, Rows, float, OpClassSimt, Sm80, GemmShape<64, 64, 8>, GemmShape<32, 32, 8>,
    GemmShape<1, 1, 1>, Linear<Out, 1, float>, Swizzle, 4>;
#else
using In = cutlass::half_t;
using Out = cutlass::half_t;
using Gemm = cutlass::gemm::device::Gemm<
    In, Rows, In, Columns, Out, Rows, float, OpClassTensorOp, Sm80, GemmShape<64, 64, 32>, GemmShape<32, 32, 32>,
    GemmShape<16, 8, 16>, Linear<Out, 8, float>, Swizzle, 3, 8, 8, PRODUCT == 3>;
#endif
using Kernel = Gemm::GemmKernel;

// What the host's Gemm::initialize does: the structure that the kernel takes by value.
__global__ void prepare(
    Kernel::Params *out, In *a, In *b, Out *c, Out *d, int *flags, int m, int n, int k, int slices) {
    cutlass::gemm::GemmCoord tile(Kernel::Mma::Shape::kM, Kernel::Mma::Shape::kN, Kernel::Mma::Shape::kK);
    cutlass::gemm::GemmCoord problem(m, n, k), grid = Swizzle::get_tiled_shape(problem, tile, slices);
    using Number = Gemm::EpilogueOutputOp::ElementCompute;
    *out = Kernel::Params(problem, grid, {a, k}, {b, k}, {c, n}, {d, n}, {Number(1), Number(2)}, flags);
}

__global__ void sizes(int *out) {
    out[0] = sizeof(Kernel::Params);
    out[1] = sizeof(Kernel::SharedStorage);
    out[2] = Kernel::kThreadCount;
}
