#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "launcher/trainer.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/launcher/recorded_store.hpp"
#include "tests/support/run_fixture.hpp"

// After its first step a training step allocates no memory that grows with model, tokens or vocabulary. This binary has
// allocators of its own that count: Buffer takes its memory from aligned_alloc and mmap, host lists from operator new.

namespace {

constexpr std::size_t kLarge = std::size_t{64} << 10;  // of operator new; smaller ones are lists of sizes and the like
std::atomic<int> buffers = 0, large_lists = 0;

}  // namespace

extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++buffers;
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, size) == 0 ? memory : nullptr;
}

extern "C" void* mmap(void* address, std::size_t size, int protection, int flags, int file, off_t offset) {
  ++buffers;
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset));
}

[[gnu::noinline]] void* operator new(std::size_t size) {
  if (size >= kLarge) ++large_lists;
  if (void* const memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace reprise {
namespace {

/// Buffers and large lists that the steps after the first allocate.
std::pair<int, int> allocations_after_the_first_step(RunConfig config) {
  std::pair<int, int> counts;
  run_ranks(static_cast<int>(config.parallel.tensor), [&](Communicator& world) {
    Session session(world, config.parallel.tensor, config.parallel.sequence_parallel, 1);
    const auto model = load_model<float>(session, config.model.path, false);
    const TrainingData data(config, model->config.vocab_size, session.groups());
    Trainer<float> trainer(session, config, *model);
    const PreparedStep step = data.prepare(0);
    std::int64_t blocks = 0;
    for (int i = 0; i < 4; ++i) {
      if (i == 2) {  // the second step puts the first one's blocks together
        world.barrier();
        if (world.rank() == 0) buffers = large_lists = 0;
        blocks = session.arena().allocations();
        world.barrier();
      }
      (void)trainer.step(step, 1e-3, false);
    }
    world.barrier();
    EXPECT_EQ(session.arena().allocations(), blocks);
    if (world.rank() == 0) counts = {buffers, large_lists};
    world.barrier();
  });
  return counts;
}

TEST(Allocations, AreCounted) {
  buffers = large_lists = 0;
  const Buffer<float> small(Stream(CpuStream{}), 100, "small"), large(Stream(CpuStream{}), 1 << 20, "large");
  const std::vector<char> list(kLarge);
  EXPECT_EQ(buffers, 2);
  EXPECT_EQ(large_lists, 1);
}

TEST(Allocations, StepsAfterTheFirstMakeNone) {
  RunFixture fixture({.count = 8, .shortest = 60, .longest = 60, .vocab_size = 20000});
  fixture.model.vocab_size = 20000;
  fixture.model.hidden_size = 16;
  fixture.model.head_dim = 4;
  make_model_folder(fixture.config.model.path, fixture.model);
  RunConfig recorded = fixture.config;
  recorded.data.sequence_length = 64;
  recorded.replay.normalization = "tile";
  recorded.replay.k_max = 8;
  recorded.replay.store = fixture.folder / "store";
  write_store(recorded);
  EXPECT_EQ(allocations_after_the_first_step(recorded), std::pair(0, 0)) << "tile";
  for (const std::int64_t tensor : {1, 2}) {
    for (const char* recompute : {"none", "selective", "layer"}) {
      RunConfig config = fixture.config;
      config.data.sequence_length = 64;
      config.parallel.tensor = tensor;
      config.parallel.sequence_parallel = tensor > 1;
      config.train.recompute = recompute;
      EXPECT_EQ(allocations_after_the_first_step(config), std::pair(0, 0)) << "tensor " << tensor << " " << recompute;
    }
  }
}

}  // namespace
}  // namespace reprise
