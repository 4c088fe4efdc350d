#pragma once

// What CUDA C++ has no function for, in one place: asynchronous copies, named barriers, matrix fragments. Kernels are
// compiled by nvcc for a GPU and, to be proven on any machine, by g++; there these functions are plain loops.
//
//   unsigned char* dynamic_shared_memory()
//       The block's dynamic shared memory; SharedMemory of simt.cuh carves it.
//   unsigned dynamic_shared_bytes()
//       Its size.
//   void device_check(bool condition, const char* what)
//       Emulated: stops with kernel, block, thread and `what`. On a GPU: nothing.
//   void copy_async<bytes>(void* shared, const void* global, bool is_valid)
//       Asks for a copy of 4, 8 or 16 aligned bytes to shared memory; zeros where is_valid is false (`global` is then
//       not read). The bytes are there for this thread after commit_copies and wait_for_copies, for others after a
//       barrier behind that.
//   void commit_copies()
//       Makes a group of the copies asked for since the last commit. Empty groups are ordinary.
//   void wait_for_copies<still_pending>()
//       Waits until at most the newest `still_pending` groups of this thread are on their way.
//   void barrier_sync(int id, int threads)
//       Waits for `threads` (whole warps) at barrier `id`, 1 to 15.
//   void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
//       d += a b by a whole warp: a [16, 16] and b [16, 8] in bfloat16, d [16, 8] in float32. With g = lane / 4 and
//       p = 2 (lane % 4), pairs of elements with the first in the lower half of a word:
//         a[0] = A(g, p..p+1)    a[1] = A(g + 8, p..p+1)    a[2] = A(g, p + 8..p + 9)    a[3] = A(g + 8, p + 8..p + 9)
//         b[0] = B(p..p+1, g)    b[1] = B(p + 8..p + 9, g)
//         d[0..1] = D(g, p..p+1)    d[2..3] = D(g + 8, p..p+1)
//   void load_matrices<n, is_transposed>(unsigned (&words)[n], const void* row)
//       n (1, 2 or 4) matrices of 8 x 8 two-byte elements from shared memory by a whole warp: lane 8 m + r gives the
//       address of row r of matrix m, 16 bytes. words[m] = M(lane / 4, p..p+1), or with is_transposed
//       M(p, lane / 4), M(p + 1, lane / 4).
//   unsigned pack_bfloat16(float low, float high)
//       Both rounded to the nearest bfloat16 (ties to even), `low` in the lower half: the operands of mma_m16n8k16.
//   float exp2_approximate(float x)
//       2^x within 2^-22 of itself; zero below 2^-126. One instruction, where exp2f is four.

#include <cuda_runtime.h>

#ifdef REPRISE_CUDA_EMULATED

#include <emulated_ptx.hpp>

#else

namespace reprise {

__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(1024) unsigned char reprise_dynamic_shared_memory[];
  return reprise_dynamic_shared_memory;
}

__device__ __forceinline__ unsigned dynamic_shared_bytes() {
  unsigned bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  return bytes;
}

__device__ __forceinline__ void device_check(bool, const char*) {}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool is_valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const int copied = is_valid ? kBytes : 0;
  if constexpr (kBytes == 16) {  // .cg passes by L1: what is staged in shared memory is read from there
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(copied)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(copied)
                 : "memory");
  }
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kStillPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kStillPending) : "memory");
}

__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <int kMatrices, bool kTransposed>
__device__ __forceinline__ void load_matrices(unsigned (&words)[kMatrices], const void* row) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const unsigned address = shared_address(row);
  if constexpr (kMatrices == 1 && !kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(words[0]) : "r"(address) : "memory");
  } else if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(words[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 2 && !kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(address)
                 : "memory");
  } else if constexpr (!kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  }
}

__device__ __forceinline__ unsigned pack_bfloat16(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ float exp2_approximate(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

}  // namespace reprise

#endif
