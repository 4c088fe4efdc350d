#include "parallel/agree.hpp"

#include <optional>
#include <string>
#include <vector>

#include "core/error.hpp"

namespace reprise {

namespace {

std::optional<Error> failure_of(const std::function<void()>& body) {
  try {
    body();
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(ErrorKind::kInternal, error.what());
  }
}

}  // namespace

void agree(Communicator& group, const std::function<void()>& body) {
  const Stream stream{CpuStream{}};
  const std::optional<Error> mine = failure_of(body);
  std::vector<std::int64_t> lowest{mine ? group.size() - group.rank() : 0};
  group.all_reduce<std::int64_t>(stream, lowest, ReduceOp::kMax);
  if (lowest[0] == 0) return;

  const int speaker = group.size() - static_cast<int>(lowest[0]);
  const bool speaks = speaker == group.rank();
  const std::string text = speaks ? mine->what() : "";
  std::vector<std::int64_t> head{speaks ? mine->exit_code() : 0, static_cast<std::int64_t>(text.size())};
  group.broadcast<std::int64_t>(stream, head, speaker);
  std::vector<std::uint8_t> bytes(text.begin(), text.end());
  bytes.resize(static_cast<std::size_t>(head[1]));
  group.broadcast<std::uint8_t>(stream, bytes, speaker);
  throw Error(static_cast<ErrorKind>(head[0]), std::string(bytes.begin(), bytes.end()));
}

}  // namespace reprise
