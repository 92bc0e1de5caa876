// Fragment: which pool row slot j of a row uses (src/routing/slots.rs).
// Needs UNITS (1: row_unit gives the unit of a row, 0: unit = row), the bindings idx and row_unit, and in Params
// s_base, s_step, s_k, s_block, s_pool_rows. A choice beyond the pool counts as its last row.
fn unit_of(row: u32) -> u32 {
  if (UNITS == 1u) { return row_unit[row]; }
  return row;
}

fn pick(unit: u32, j: u32) -> u32 {
  let per = p.s_k * p.s_block;
  let l = j / per;
  let s = j - l * per;
  let choice = idx[p.s_base + l * p.s_step + unit * p.s_k + s / p.s_block];
  return l * p.s_pool_rows + min(choice * p.s_block + s % p.s_block, p.s_pool_rows - 1u);
}
