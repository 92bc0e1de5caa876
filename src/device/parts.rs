//! The fragments of `shaders/common/`, by name.

macro_rules! parts {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)+) => {
        $($(#[$doc])* pub const $name: &str = include_str!(concat!("../../shaders/common/", $file, ".wgsl"));)+
    };
}

parts! {
    /// `linear_group(workgroup_id, num_workgroups)`.
    GRID = "grid";
    /// `workgroup_sum(value, lid)` and `workgroup_max(value, lid)`; needs `WG`.
    SUM = "sum";
    /// The same interface where one invocation does the whole item.
    SUM_LANE = "sum_lane";
    /// `workgroup_best(pair, lid)`: the largest value and its index; needs `WG`.
    BEST = "best";
    /// The same interface where one invocation does the whole item.
    BEST_LANE = "best_lane";
    /// `key(bits)` and `before(key_a, a, key_b, b)`: the order of values from large to small.
    ORDER = "order";
    /// `random_uniform(key, index)`.
    RANDOM = "random";
    /// `unit_of(row)` and `pick(unit, slot)`; needs `UNITS`, `idx`, `row_unit`.
    SLOTS = "slots";
    /// `drop_factor(index)`; needs `RANDOM` and `DROP`.
    DROPOUT = "dropout";
    /// `tanh_of(x)` and `softcap(x, cap)`: `cap tanh(x / cap)`.
    SOFTCAP = "softcap";
    /// `half(bits)`: an f16 as f32.
    HALF = "half";
    /// `load_w(row, col)` from f32; needs `p.w_words`.
    LOAD_F32 = "load_f32";
    /// `load_w(row, col)` from f16; needs `p.w_words`.
    LOAD_F16 = "load_f16";
    /// `load_w(row, col)` from bf16; needs `p.w_words`.
    LOAD_BF16 = "load_bf16";
    /// `load_w(row, col)` from q8_0; needs `p.w_words`, `HALF`.
    LOAD_Q8_0 = "load_q8_0";
    /// `load_w(row, col)` from q4_0; needs `p.w_words`, `HALF`.
    LOAD_Q4_0 = "load_q4_0";
    /// `load_w(row, col)` from q4_1; needs `p.w_words`, `HALF`.
    LOAD_Q4_1 = "load_q4_1";
    /// `load_w(row, col)` from q5_0; needs `p.w_words`, `HALF`.
    LOAD_Q5_0 = "load_q5_0";
    /// `load_w(row, col)` from q5_1; needs `p.w_words`, `HALF`.
    LOAD_Q5_1 = "load_q5_1";
    /// `load_w(row, col)` from q4_k; needs `p.w_words`, `HALF`.
    LOAD_Q4_K = "load_q4_k";
    /// `load_w(row, col)` from q5_k; needs `p.w_words`, `HALF`.
    LOAD_Q5_K = "load_q5_k";
    /// `load_w(row, col)` from q6_k; needs `p.w_words`, `HALF`.
    LOAD_Q6_K = "load_q6_k";
    /// `a4(at, left)` from rows of whole vectors; declares binding 0.
    READ4 = "read4";
    /// The same interface for rows of any length.
    READ4_ANY = "read4_any";
    /// The entries `direct`, `tile` and `vector` of a dense product; see the file for what it needs.
    PRODUCT = "product";
    /// The entry `ahead` beside those of `PRODUCT`.
    PRODUCT_AHEAD = "product_ahead";
    /// The entry `stream` beside those of `PRODUCT`; needs `PIECE`.
    PRODUCT_STREAM = "product_stream";
    /// The entry `coop` beside those of `PRODUCT`; needs `COOP_8` or `COOP_16`.
    PRODUCT_COOP = "product_coop";
    /// Cooperative matrices of 8 x 8.
    COOP_8 = "coop_8";
    /// Cooperative matrices of 16 x 16.
    COOP_16 = "coop_16";
    /// `load_w4(row, col)` by `load_w`; needs `p.n`, `p.k`, `TB`.
    LOAD4_ANY = "load4_any";
    /// `load_w4(row, col)` from f32; needs `p.w_words`; declares binding 1.
    LOAD4_F32 = "load4_f32";
    /// `load_w4(row, col)` from f16; needs `p.w_words`.
    LOAD4_F16 = "load4_f16";
    /// `load_w4(row, col)` from bf16; needs `p.w_words`.
    LOAD4_BF16 = "load4_bf16";
    /// `load_w4(row, col)` from q8_0; needs `p.w_words`, `HALF`.
    LOAD4_Q8_0 = "load4_q8_0";
    /// `load_w4(row, col)` from q4_0; needs `p.w_words`, `HALF`.
    LOAD4_Q4_0 = "load4_q4_0";
    /// `load_w4(row, col)` from q4_1; needs `p.w_words`, `HALF`.
    LOAD4_Q4_1 = "load4_q4_1";
    /// `load_w4(row, col)` from q5_0; needs `p.w_words`, `HALF`.
    LOAD4_Q5_0 = "load4_q5_0";
    /// `load_w4(row, col)` from q5_1; needs `p.w_words`, `HALF`.
    LOAD4_Q5_1 = "load4_q5_1";
    /// `load_w4(row, col)` from q4_k; needs `p.w_words`, `HALF`.
    LOAD4_Q4_K = "load4_q4_k";
    /// `load_w4(row, col)` from q5_k; needs `p.w_words`, `HALF`.
    LOAD4_Q5_K = "load4_q5_k";
    /// `load_w4(row, col)` from q6_k; needs `p.w_words`, `HALF`.
    LOAD4_Q6_K = "load4_q6_k";
    /// `words4(at)` and `word(at)` from rows of whole vectors of words; declares binding 1.
    WORDS4 = "words4";
    /// The same interface for rows of any length.
    WORDS4_ANY = "words4_any";
    /// Neighbouring weights of a row as they are stored; needs one of those below.
    PIECE = "piece";
    /// `piece(row, k)` and `quad(piece, q)` of f32; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_F32 = "piece_f32";
    /// `piece(row, k)` and `quad(piece, q)` of f16; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_F16 = "piece_f16";
    /// `piece(row, k)` and `quad(piece, q)` of bf16; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_BF16 = "piece_bf16";
    /// `piece(row, k)` and `quad(piece, q)` of q8_0; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_Q8_0 = "piece_q8_0";
    /// `piece(row, k)` and `quad(piece, q)` of q4_0; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_Q4_0 = "piece_q4_0";
    /// `piece(row, k)` and `quad(piece, q)` of q4_1; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_Q4_1 = "piece_q4_1";
    /// `piece(row, k)` and `quad(piece, q)` of q5_0; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_Q5_0 = "piece_q5_0";
    /// `piece(row, k)` and `quad(piece, q)` of q5_1; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_Q5_1 = "piece_q5_1";
    /// `piece(row, k)` and `quad(piece, q)` of q4_k; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_Q4_K = "piece_q4_k";
    /// `piece(row, k)` and `quad(piece, q)` of q5_k; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_Q5_K = "piece_q5_k";
    /// `piece(row, k)` and `quad(piece, q)` of q6_k; needs `PIECE`, `HALF`, `WORDS4`.
    PIECE_Q6_K = "piece_q6_k";
}
