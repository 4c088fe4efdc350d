#pragma once

#include <cstdint>

namespace reprise {

/// One tile's candidates on this rank, and the place of their logits [ids, tokens].
struct LocalTile {
  std::int64_t token_begin = 0, token_end = 0;
  std::int64_t id_begin = 0, id_end = 0;  ///< into the local ids
  std::int64_t logits = 0;                ///< offset of this tile's [ids, tokens] logits

  [[nodiscard]] constexpr std::int64_t tokens() const { return token_end - token_begin; }
  [[nodiscard]] constexpr std::int64_t num_ids() const { return id_end - id_begin; }
};

}  // namespace reprise
