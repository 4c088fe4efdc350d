#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/communicator.hpp"

namespace reprise {

/// `size` ranks as threads of this process; element r belongs to rank r and is used by one thread only.
/// A rank that calls abort() poisons the group (and every group split from it): peers' pending and later calls throw.
[[nodiscard]] std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size);

/// Runs body(world) on `size` threads and joins them. The first failing rank (by time) poisons the group, its exception
/// is rethrown here.
void run_ranks(int size, const std::function<void(Communicator& world)>& body);

}  // namespace reprise
