#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "core/file_io.hpp"
#include "launcher/checkpoint.hpp"
#include "launcher/checkpoint_manifest.hpp"
#include "parallel/self_communicator.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/launcher/checkpoint_state.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {

namespace {

namespace fs = std::filesystem;

TrainerState state_of(std::int64_t step) {
  TrainerState state;
  state.step = step;
  return state;
}

void save(Communicator& world, const fs::path& root, const StateLayout& layout, std::int64_t step) {
  const auto groups = ProcessGroups::make(world, layout.tensor);
  FakeState fake(layout, groups.tp_rank(), groups.dp_rank(), false);
  fake.fill(static_cast<std::uint64_t>(step));
  (void)save_checkpoint(test_stream(), groups, root, state_of(step), fake.specs(), fake.owned(), 3);
}

void save_alone(const fs::path& root, std::int64_t step) {
  save(*make_self_communicator(), root, {1, 1}, step);
}

/// What a killed process may leave behind, at each point of a save.
TEST(CheckpointFaults, LeftoversOfAKilledSaveAreIgnoredAndRemoved) {
  const TemporaryFolder root;
  save_alone(root.path(), 1);
  save_alone(root.path(), 2);
  const fs::path second = root / "step-00000002", partial = root / "step-00000002.tmp";
  const auto expect_first_is_found = [&] {
    const auto found = find_checkpoint(*make_self_communicator(), root.path());
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->folder, root / "step-00000001");
    EXPECT_TRUE(found->passed_over.empty());
  };
  fs::rename(second, partial);  // killed before the rename
  expect_first_is_found();
  fs::remove(partial / "manifest.json");  // killed before the manifest
  expect_first_is_found();
  fs::rename(partial / "rank-00000.safetensors", partial / "rank-00000.safetensors.part");  // killed while writing
  expect_first_is_found();
  fs::create_directories(root / "step-00000001.old.tmp");  // killed while an old one was being replaced or deleted

  save_alone(root.path(), 3);
  EXPECT_FALSE(fs::exists(partial));
  EXPECT_FALSE(fs::exists(root / "step-00000001.old.tmp"));
  EXPECT_EQ(list_checkpoints(root.path()).size(), 2u);
}

TEST(CheckpointFaults, KilledAtAnyTimeASoundCheckpointRemains) {
  const TemporaryFolder root;
  save_alone(root.path(), 1);
  for (int kill = 0; kill < 12; ++kill) {
    const std::int64_t before = list_checkpoints(root.path()).back().step;
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (std::int64_t step = before + 1;; ++step) save_alone(root.path(), step);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(3000 + 1700 * kill));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));

    const auto found = find_checkpoint(*make_self_communicator(), root.path());
    ASSERT_TRUE(found.has_value());
    EXPECT_TRUE(found->passed_over.empty());
    std::string latest = read_text_file(root / "LATEST", ErrorKind::kCheckpoint);
    latest.pop_back();
    EXPECT_TRUE(verify_checkpoint(root / latest).empty());
    const auto step = static_cast<std::uint64_t>(step_of_folder_name(found->folder.filename().string()));
    FakeState fake({1, 1}, 0, 0, true);
    const auto world = make_self_communicator();
    (void)load_checkpoint(test_stream(), ProcessGroups::make(*world, 1), found->folder, fake.specs(), fake.held());
    EXPECT_EQ(fake.differences(step), 0);
  }
}

/// Files of this process cannot grow beyond the limit while it lives: a full disk, as far as write() can tell.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

void expect_disk_error_on_every_rank(const fs::path& root, const StateLayout& layout,
                                     const std::vector<std::string>& parts) {
  run_ranks(layout.ranks(), [&](Communicator& world) {
    expect_error(ErrorKind::kDisk, parts, [&] { save(world, root, layout, 9); });
    world.barrier();
  });
}

TEST(CheckpointFaults, AFullDiskIsAnErrorOnEveryRankAndLeavesTheOlderOnesAlone) {
  const TemporaryFolder root;
  save_alone(root.path(), 1);
  {
    const FileSizeLimit limit(20000);  // in the middle of the ranks' files
    expect_disk_error_on_every_rank(root.path(), {2, 1}, {"step-00000009.tmp", "write"});
  }
  {
    const FileSizeLimit limit(400000);  // below one rank's file alone: 9000 x 4 x 3 floats and more
    expect_disk_error_on_every_rank(root.path(), {1, 1}, {"rank-00000", "write"});
  }
  const auto found = find_checkpoint(*make_self_communicator(), root.path());
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->folder, root / "step-00000001");
  EXPECT_FALSE(fs::exists(root / "step-00000009.tmp"));
  EXPECT_FALSE(fs::exists(root / "step-00000009"));
  EXPECT_EQ(read_text_file(root / "LATEST", ErrorKind::kCheckpoint), "step-00000001\n");
  save_alone(root.path(), 9);
  EXPECT_TRUE(verify_checkpoint(root / "step-00000009").empty());
}

TEST(CheckpointFaults, AFolderThatCannotBeMadeIsADiskError) {
  const TemporaryFolder root;
  write_file_atomically(root / "file", "");
  expect_disk_error_on_every_rank(root / "file" / "checkpoints", {1, 2}, {"file/checkpoints"});
}

}  // namespace

}  // namespace reprise
