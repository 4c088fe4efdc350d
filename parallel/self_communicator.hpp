#pragma once

#include "parallel/communicator.hpp"

namespace reprise {

/// The group of one rank: every verb is a copy or nothing, none is counted as bytes.
[[nodiscard]] std::unique_ptr<Communicator> make_self_communicator(std::string name = "self");

}  // namespace reprise
