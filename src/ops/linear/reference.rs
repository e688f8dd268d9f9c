//! The meaning of the layer: slow, plain, f64, dense arrays `x [p][c_in]`, `w [c_out][c_in]`. For tests and benches only.

/// `y[p][co] = bias[co] + sum of x[p][ci] w[co][ci]`.
pub fn forward(c_in: usize, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let mut y = vec![];
    for x in x.chunks(c_in) {
        for (co, w) in w.chunks(c_in).enumerate() {
            y.push(bias.map_or(0.0, |b| b[co]) + x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>());
        }
    }
    y
}

/// Gradients of input, weight and bias.
pub fn backward(c_in: usize, x: &[f64], w: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let c_out = w.len() / c_in;
    let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; c_out]);
    for p in 0..x.len() / c_in {
        for co in 0..c_out {
            let g = dy[p * c_out + co];
            db[co] += g;
            for ci in 0..c_in {
                dx[p * c_in + ci] += g * w[co * c_in + ci];
                dw[co * c_in + ci] += g * x[p * c_in + ci];
            }
        }
    }
    (dx, dw, db)
}
