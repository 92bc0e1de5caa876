// Fragment: cooperative matrices of 8 x 8, f16 operands and f32 sums. No global may be called A, B or C beside it.
enable f16;
enable wgpu_cooperative_matrix;
const SIDE: u32 = 8u;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;
