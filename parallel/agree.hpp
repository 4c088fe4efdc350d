#pragma once

#include <functional>

#include "parallel/communicator.hpp"

namespace reprise {

/// Runs `body`, which calls no collective, on every rank. When it throws anywhere, every rank throws the error of the
/// lowest rank that failed, so that nobody goes on alone. Collective; one all-reduce where nothing fails.
void agree(Communicator& group, const std::function<void()>& body);

}  // namespace reprise
