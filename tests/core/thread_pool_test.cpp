#include "core/thread_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "core/stream.hpp"

namespace reprise {
namespace {

using Chunks = std::set<std::pair<std::int64_t, std::int64_t>>;

Chunks chunks_of(ThreadPool& pool, std::int64_t size, std::int64_t grain) {
  Chunks chunks;
  std::mutex mutex;
  pool.run(size, grain, [&](std::int64_t begin, std::int64_t end) {
    const std::lock_guard lock(mutex);
    EXPECT_TRUE(chunks.emplace(begin, end).second);
  });
  return chunks;
}

TEST(ThreadPool, ChunksDependOnSizeAndGrainAlone) {
  for (const auto& [size, grain] : {std::pair{0, 3}, {1, 3}, {3, 3}, {4, 3}, {100, 7}, {5, 0}, {5, -1}}) {
    ThreadPool one(1);
    const Chunks expected = chunks_of(one, size, grain);
    std::int64_t next = 0;
    for (const auto& [begin, end] : expected) {
      EXPECT_EQ(begin, next);
      EXPECT_LE(end - begin, std::max(grain, 1));
      next = end;
    }
    EXPECT_EQ(next, size);
    for (const int threads : {2, 3, 5}) {
      ThreadPool pool(threads);
      EXPECT_EQ(pool.num_threads(), threads);
      EXPECT_EQ(chunks_of(pool, size, grain), expected);
    }
  }
}

TEST(ThreadPool, ManySmallJobsEachTouchEveryElementOnce) {
  ThreadPool pool(3);
  std::vector<int> counts(50);
  for (int job = 1; job <= 3000; ++job) {
    pool.run(50, 5, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) ++counts[static_cast<std::size_t>(i)];
    });
    ASSERT_EQ(counts.front(), job);
  }
  for (const int count : counts) EXPECT_EQ(count, 3000);
}

TEST(ThreadPool, OtherThreadsHelp) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  std::atomic<bool> met{true};
  pool.run(2, 1, [&](std::int64_t, std::int64_t) {  // each chunk waits for the other: one thread alone would not end
    ++arrived;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (arrived.load() < 2 && met.load()) {
      if (std::chrono::steady_clock::now() > deadline) met = false;
      std::this_thread::yield();
    }
  });
  EXPECT_TRUE(met.load());
}

TEST(ThreadPool, RethrowsAnExceptionAndWorksAfterwards) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 20; ++round) {
      EXPECT_THROW(pool.run(30, 1,
                            [&](std::int64_t begin, std::int64_t) {
                              if (begin == round) throw std::out_of_range("chunk");
                            }),
                   std::out_of_range);
      std::atomic<int> sum{0};
      pool.run(10, 1, [&](std::int64_t begin, std::int64_t) { sum += static_cast<int>(begin); });
      EXPECT_EQ(sum.load(), 45);
    }
  }
}

TEST(ThreadPool, NestedCallsRunSerially) {
  ThreadPool pool(3);
  std::atomic<int> total{0};
  pool.run(6, 1, [&](std::int64_t, std::int64_t) {
    const auto outer = std::this_thread::get_id();
    pool.run(10, 2, [&](std::int64_t begin, std::int64_t end) {
      EXPECT_EQ(std::this_thread::get_id(), outer);
      total += static_cast<int>(end - begin);
    });
  });
  EXPECT_EQ(total.load(), 60);
}

TEST(ThreadPool, RanksAsThreadsEachUseTheirOwn) {
  std::atomic<std::int64_t> total{0};
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([&] {
      ThreadPool pool(2);
      for (int job = 0; job < 200; ++job) {
        pool.run(8, 1, [&](std::int64_t begin, std::int64_t end) { total += end - begin; });
      }
    });
  }
  for (auto& rank : ranks) rank.join();
  EXPECT_EQ(total.load(), 4 * 200 * 8);
}

TEST(ThreadPool, NoThreadsIsAnError) {
  EXPECT_THROW(ThreadPool(0), Error);
}

TEST(CpuStream, WithoutAPoolRunsTheSameChunks) {
  ThreadPool pool(2);
  std::vector<std::int64_t> begins;
  CpuStream().parallel_for(10, 4, [&](std::int64_t begin, std::int64_t) { begins.push_back(begin); });
  EXPECT_EQ(begins, (std::vector<std::int64_t>{0, 4, 8}));
  EXPECT_EQ(CpuStream().num_threads(), 1);
  EXPECT_EQ(CpuStream{&pool}.num_threads(), 2);
  int calls = 0;
  CpuStream().parallel_for(3, 0, [&](std::int64_t, std::int64_t) { ++calls; });
  EXPECT_EQ(calls, 3);
}

}  // namespace
}  // namespace reprise
