#include "launcher/checkpoint.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>

#include "core/file_io.hpp"
#include "launcher/checkpoint_manifest.hpp"
#include "parallel/self_communicator.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/launcher/checkpoint_state.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {

namespace {

namespace fs = std::filesystem;

constexpr StateLayout kLayouts[] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {3, 1}};

TrainerState state_of(std::int64_t step) {
  TrainerState state;
  state.step = step;
  state.next_sample = 32 * step;
  state.steps_taken = step - 1;
  state.skips = 1;
  state.skips_in_row = 0;
  state.metrics_bytes = 1000 * step;
  state.best_eval = 1.0 / 3.0;
  state.run_toml = "[train]\nsteps = 7 # \"näher\"\n";
  state.model_fingerprint = "abc";
  return state;
}

void save(const fs::path& root, const StateLayout& layout, const TrainerState& state, std::int64_t keep = 3) {
  run_ranks(layout.ranks(), [&](Communicator& world) {
    const auto groups = ProcessGroups::make(world, layout.tensor);
    FakeState fake(layout, groups.tp_rank(), groups.dp_rank(), false);
    fake.fill(static_cast<std::uint64_t>(state.step));
    const fs::path folder = save_checkpoint(test_stream(), groups, root, state, fake.specs(), fake.owned(), keep);
    EXPECT_EQ(folder, root / step_folder_name(state.step));
  });
}

/// Loads on all ranks of a layout and returns the number of wrong elements on any rank.
std::int64_t load_differences(const fs::path& folder, const StateLayout& layout, bool keep_copies, std::uint64_t seed) {
  std::atomic<std::int64_t> differences = 0;
  run_ranks(layout.ranks(), [&](Communicator& world) {
    const auto groups = ProcessGroups::make(world, layout.tensor);
    const FakeState fake(layout, groups.tp_rank(), groups.dp_rank(), keep_copies);
    (void)load_checkpoint(test_stream(), groups, folder, fake.specs(), fake.held());
    differences += fake.differences(seed);
  });
  return differences;
}

void expect_load_error(const fs::path& folder, const StateLayout& layout, const std::vector<std::string>& parts) {
  run_ranks(layout.ranks(), [&](Communicator& world) {
    const auto groups = ProcessGroups::make(world, layout.tensor);
    const FakeState fake(layout, groups.tp_rank(), groups.dp_rank(), false);
    expect_error(ErrorKind::kCheckpoint, parts,
                 [&] { (void)load_checkpoint(test_stream(), groups, folder, fake.specs(), fake.held()); });
  });
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string latest_of(const fs::path& root) {
  return read_text_file(root / "LATEST", ErrorKind::kCheckpoint);
}

void flip_bit(const fs::path& path, std::int64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  char byte = 0;
  file.seekg(offset).read(&byte, 1);
  byte = static_cast<char>(byte ^ 0x10);
  file.seekp(offset).write(&byte, 1);
}

TEST(Checkpoint, EveryLayoutLoadsWhatEveryOtherWroteBitForBit) {
  const TemporaryFolder root;
  std::int64_t step = 1;
  for (const StateLayout& writer : kLayouts) {
    save(root.path(), writer, state_of(step), 100);
    const fs::path folder = root.path() / step_folder_name(step);
    EXPECT_EQ(verify_checkpoint(folder), std::vector<std::string>{});
    for (const StateLayout& reader : kLayouts) {
      for (const bool keep_copies : {false, true}) {
        EXPECT_EQ(load_differences(folder, reader, keep_copies, static_cast<std::uint64_t>(step)), 0)
            << writer.tensor << " x " << writer.data << " read by " << reader.tensor << " x " << reader.data;
      }
    }
    ++step;
  }
}

TEST(Checkpoint, TrainerStateComesBack) {
  const TemporaryFolder root;
  const TrainerState saved = state_of(12);
  save(root.path(), {1, 1}, saved);
  const TrainerState loaded = read_trainer_state(root.path() / "step-00000012");
  EXPECT_EQ(loaded.step, saved.step);
  EXPECT_EQ(loaded.next_sample, saved.next_sample);
  EXPECT_EQ(loaded.steps_taken, saved.steps_taken);
  EXPECT_EQ(loaded.skips, saved.skips);
  EXPECT_EQ(loaded.skips_in_row, saved.skips_in_row);
  EXPECT_EQ(loaded.metrics_bytes, saved.metrics_bytes);
  EXPECT_EQ(loaded.best_eval, saved.best_eval);
  EXPECT_EQ(loaded.best_step, saved.best_step);
  EXPECT_EQ(loaded.run_toml, saved.run_toml);
  EXPECT_EQ(loaded.model_fingerprint, saved.model_fingerprint);
}

TEST(Checkpoint, EqualStateIsEqualBytes) {
  const TemporaryFolder a, b;
  save(a.path(), {2, 2}, state_of(3));
  save(b.path(), {2, 2}, state_of(3));
  for (const std::string& name : names_in(a / "step-00000003")) {
    EXPECT_EQ(read_text_file(a / "step-00000003" / name, ErrorKind::kData),
              read_text_file(b / "step-00000003" / name, ErrorKind::kData))
        << name;
  }
}

TEST(Checkpoint, AnExportReadsTheWeightsAlone) {
  const TemporaryFolder root;
  save(root.path(), {2, 1}, state_of(5));
  const auto world = make_self_communicator();
  const auto groups = ProcessGroups::make(*world, 1);
  FakeState fake({1, 1}, 0, 0, true), expected({1, 1}, 0, 0, true);
  expected.fill(5);
  std::vector<OwnedPiece> masters = fake.held();
  for (OwnedPiece& piece : masters) piece.exp_avg = piece.exp_avg_sq = {};
  (void)load_checkpoint(test_stream(), groups, root / "step-00000005", fake.specs(), masters);
  for (std::size_t p = 0; p < masters.size(); ++p) {
    const auto bytes = static_cast<std::size_t>(masters[p].local.size()) * sizeof(float);
    const auto master = to_host(test_stream(), masters[p].master);
    EXPECT_EQ(std::memcmp(master.data(), to_host(test_stream(), expected.held()[p].master).data(), bytes), 0);
    EXPECT_EQ(to_host(test_stream(), fake.held()[p].exp_avg)[0], 0.0f);
  }
}

TEST(Checkpoint, RetentionKeepsTheNewestAndTheBest) {
  const TemporaryFolder root;
  TrainerState state = state_of(0);
  for (std::int64_t step = 10; step <= 50; step += 10) {
    state.step = step;
    if (step == 20) state.best_step = 20;
    save(root.path(), {1, 2}, state, 2);
  }
  EXPECT_EQ(names_in(root.path()),
            (std::vector<std::string>{"LATEST", "step-00000020", "step-00000040", "step-00000050"}));
  EXPECT_EQ(latest_of(root.path()), "step-00000050\n");
  const auto list = list_checkpoints(root.path());
  ASSERT_EQ(list.size(), 3u);
  EXPECT_TRUE(list[0].is_best && !list[1].is_best && !list[2].is_best);
  EXPECT_TRUE(!list[0].is_latest && !list[1].is_latest && list[2].is_latest);
  EXPECT_EQ(list[1].step, 40);
  EXPECT_EQ(list[1].tensor, 1);
  EXPECT_EQ(list[1].data, 2);
  EXPECT_GT(list[1].bytes, 100000);

  state.step = 60;
  save(root.path(), {1, 1}, state, 0);  // whatever `keep` says, the new one stays
  EXPECT_EQ(names_in(root.path()), (std::vector<std::string>{"LATEST", "step-00000020", "step-00000060"}));
}

TEST(Checkpoint, LaterStepsOfAnAbandonedCourseGo) {
  const TemporaryFolder root;
  for (const std::int64_t step : {10, 20, 30}) save(root.path(), {1, 1}, state_of(step), 5);
  save(root.path(), {1, 1}, state_of(15), 5);
  EXPECT_EQ(names_in(root.path()), (std::vector<std::string>{"LATEST", "step-00000010", "step-00000015"}));
  EXPECT_EQ(latest_of(root.path()), "step-00000015\n");
}

TEST(Checkpoint, ASavedStepCanBeSavedAgain) {
  const TemporaryFolder root;
  save(root.path(), {2, 1}, state_of(10));
  flip_bit(root / "step-00000010" / "rank-00001.safetensors", 5000);
  save(root.path(), {1, 1}, state_of(10));
  EXPECT_EQ(names_in(root.path()), (std::vector<std::string>{"LATEST", "step-00000010"}));
  EXPECT_EQ(names_in(root / "step-00000010"), (std::vector<std::string>{"manifest.json", "rank-00000.safetensors"}));
  EXPECT_EQ(load_differences(root / "step-00000010", {1, 2}, false, 10), 0);
}

TEST(Checkpoint, AFolderWithoutCheckpointsHasNone) {
  const TemporaryFolder root;
  EXPECT_TRUE(list_checkpoints(root / "absent").empty());
  const auto world = make_self_communicator();
  EXPECT_FALSE(find_checkpoint(*world, root / "absent").has_value());
  fs::create_directories(root / "step-7");
  fs::create_directories(root / "step-00000007.tmp");
  fs::create_directories(root / "steps-00000007");
  EXPECT_TRUE(list_checkpoints(root.path()).empty());
}

TEST(Checkpoint, OtherParametersAreRefusedByName) {
  const TemporaryFolder root;
  save(root.path(), {1, 1}, state_of(4));
  const fs::path folder = root / "step-00000004";
  const auto world = make_self_communicator();
  const auto groups = ProcessGroups::make(*world, 1);
  const auto expect = [&](const std::vector<std::string>& parts, const std::function<void(FakeState&)>& change) {
    FakeState fake({1, 1}, 0, 0, true);
    change(fake);
    expect_error(ErrorKind::kCheckpoint, parts,
                 [&] { (void)load_checkpoint(test_stream(), groups, folder, fake.specs(), fake.held()); });
  };
  expect({folder.string(), "no tensor \"gate\""}, [](FakeState& fake) { fake.specs()[0].name = "gate"; });
  expect({"\"down\" has the shape [50, 13], this model's is [51, 13]"},
         [](FakeState& fake) { fake.specs()[3].global_rows = 51; });
  expect({"\"frozen\" was frozen, here it is trained"}, [](FakeState& fake) { fake.specs()[4].frozen = false; });
  expect({"\"short\" is not one of this model"}, [](FakeState& fake) { fake.specs().pop_back(); });
}

// ---- damage ----

/// verify and load both name the file; the other rank's file is not accused.
void expect_damage(const fs::path& folder, const std::string& name, const std::string& what) {
  const auto problems = verify_checkpoint(folder);
  ASSERT_EQ(problems.size(), 1u) << what;
  EXPECT_NE(problems[0].find(name), std::string::npos) << problems[0];
  EXPECT_NE(problems[0].find(what), std::string::npos) << problems[0];
  expect_load_error(folder, {1, 1}, {name, what});
  expect_load_error(folder, {2, 2}, {name, what});
}

TEST(CheckpointDamage, FlippedBitsTruncationAndLossAreFound) {
  const TemporaryFolder root;
  const fs::path folder = root / "step-00000001", file = folder / "rank-00001.safetensors";
  save(root.path(), {2, 1}, state_of(1));
  const auto bytes = static_cast<std::int64_t>(fs::file_size(file));
  for (const std::int64_t offset : {std::int64_t{0}, std::int64_t{40}, bytes / 2, bytes - 1}) {
    flip_bit(file, offset);
    expect_damage(folder, "rank-00001.safetensors", "SHA-256");
    flip_bit(file, offset);
  }
  EXPECT_TRUE(verify_checkpoint(folder).empty());

  const std::string whole = read_text_file(file, ErrorKind::kData);
  fs::resize_file(file, static_cast<std::uintmax_t>(bytes - 1));
  expect_damage(folder, "rank-00001.safetensors", "bytes where the manifest states");
  write_file_atomically(file, whole + "x");
  expect_damage(folder, "rank-00001.safetensors", "bytes where the manifest states");
  fs::remove(file);
  expect_damage(folder, "rank-00001.safetensors", "No such file");
}

TEST(CheckpointDamage, AnyChangedCharacterOfTheManifestIsFound) {
  const TemporaryFolder root;
  save(root.path(), {1, 1}, state_of(123));
  const fs::path folder = root / "step-00000123", file = folder / "manifest.json";
  const std::string whole = read_text_file(file, ErrorKind::kData);
  int changes = 0;
  for (std::size_t i = 0; i < whole.size(); i += 7) {
    if (std::isalnum(static_cast<unsigned char>(whole[i])) == 0) continue;
    flip_bit(file, static_cast<std::int64_t>(i));
    EXPECT_FALSE(verify_checkpoint(folder).empty()) << "byte " << i;
    flip_bit(file, static_cast<std::int64_t>(i));
    ++changes;
  }
  EXPECT_GT(changes, 50);
  EXPECT_TRUE(verify_checkpoint(folder).empty());
}

TEST(CheckpointDamage, ForeignManifestsAreRefused) {
  const TemporaryFolder root;
  save(root.path(), {1, 1}, state_of(1));
  const fs::path folder = root / "step-00000001";
  const auto expect = [&](const std::string& text, const std::string& what) {
    write_file_atomically(folder / "manifest.json", text);
    expect_load_error(folder, {1, 1}, {"manifest.json", what});
    EXPECT_EQ(verify_checkpoint(folder).size(), 1u);
  };
  expect("{\"format\": \"reprise-store\", \"version\": 1}", "not the manifest of a checkpoint");
  expect("[1, 2]", "not the manifest of a checkpoint");
  expect("{\"format\": \"reprise-checkpoint\", \"version\": 2}", "newer version");
  expect("{\"format\": \"reprise-checkpoint\", \"version\": 1.5}", "integer");
  expect("{\"format\": \"reprise-checkpoint\", \"version\": 1}", "sha256");
  expect("{\"format\":", "not valid JSON");
  expect("", "not valid JSON");
  fs::remove(folder / "manifest.json");
  expect_load_error(folder, {2, 1}, {"manifest.json", "No such file"});
}

/// A manifest that is sound in itself and says something wrong, as a program with a defect would write it.
TEST(CheckpointDamage, WrongPiecesAreFound) {
  const TemporaryFolder root;
  save(root.path(), {2, 1}, state_of(1));
  const fs::path folder = root / "step-00000001";
  const CheckpointManifest sound = read_manifest(folder);
  const auto expect = [&](const std::string& what, const std::function<void(CheckpointManifest&)>& change) {
    CheckpointManifest manifest = sound;
    change(manifest);
    write_file_atomically(folder / "manifest.json", to_json(manifest));
    expect_load_error(folder, {1, 1}, {what});
    const auto problems = verify_checkpoint(folder);
    ASSERT_FALSE(problems.empty());
    EXPECT_NE(problems[0].find(what), std::string::npos) << problems[0];
  };
  expect("the pieces of \"embedding\" hold 65 elements of 66",
         [](CheckpointManifest& m) { m.files[0].pieces[0].elements.begin += 1; });
  expect("pieces of \"embedding\" overlap", [](CheckpointManifest& m) {
    m.files[1].pieces[0].rows = {3, 8};  // the same number of elements, some of them twice
  });
  expect("lies outside of the tensor", [](CheckpointManifest& m) { m.files[0].pieces[1].cols.end += 9000; });
  expect("lies outside of the tensor", [](CheckpointManifest& m) { m.files[0].pieces[1].elements.begin = -1; });
  expect("piece of tensor 99", [](CheckpointManifest& m) { m.files[0].pieces[1].parameter = 99; });
  expect("cannot be a file of this folder", [](CheckpointManifest& m) { m.files[0].name = "../secret"; });
  expect("cannot have the shape",
         [](CheckpointManifest& m) { m.parameters[0].rows = m.parameters[0].cols = std::int64_t{1} << 40; });
  expect("is not F32 of shape", [](CheckpointManifest& m) {
    // Both ranks' cuts moved by one row: all is covered, but the files hold other lengths.
    m.files[0].pieces[0].rows = {0, 5};
    m.files[0].pieces[0].elements = {0, 30};
    m.files[1].pieces[0].rows = {5, 11};
    m.files[1].pieces[0].elements = {0, 36};
  });
}

TEST(CheckpointDamage, TheNewestSoundOneIsFound) {
  const TemporaryFolder root;
  for (const std::int64_t step : {1, 2, 3}) save(root.path(), {2, 1}, state_of(step));
  flip_bit(root / "step-00000003" / "rank-00000.safetensors", 3000);
  fs::remove(root / "step-00000002" / "manifest.json");
  for (const int ranks : {1, 3}) {
    run_ranks(ranks, [&](Communicator& world) {
      const auto found = find_checkpoint(world, root.path());
      ASSERT_TRUE(found.has_value());
      EXPECT_EQ(found->folder, root / "step-00000001");
      ASSERT_EQ(found->passed_over.size(), 2u);
      EXPECT_NE(found->passed_over[0].find("rank-00000.safetensors"), std::string::npos);
      EXPECT_NE(found->passed_over[1].find("manifest.json"), std::string::npos);
    });
  }
  flip_bit(root / "step-00000001" / "rank-00001.safetensors", 3000);
  const auto world = make_self_communicator();
  EXPECT_FALSE(find_checkpoint(*world, root.path()).has_value());
  EXPECT_EQ(list_checkpoints(root.path()).size(), 3u);
}

}  // namespace

}  // namespace reprise
