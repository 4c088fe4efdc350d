#include <gtest/gtest.h>

#include "core/thread_pool.hpp"
#include "tests/layers/attention_case.hpp"

namespace reprise {
namespace {

TEST(Attention, ThreadsChangeNoBit) {
  Case<float> one({4, 2, 8}, {0, 70, 75, 200}), three = one;
  ThreadPool pool(3);
  one.run(Stream(CpuStream{}));
  three.run(Stream(CpuStream{&pool}));
  EXPECT_EQ(one.output, three.output);
  EXPECT_EQ(one.d_qkv, three.d_qkv);
}

}  // namespace
}  // namespace reprise
