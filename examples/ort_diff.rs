use fovea::executor::{LoadOptions, Network};
fn f32s(p: &str) -> Vec<f32> {
    std::fs::read(p).unwrap().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let mut net = Network::load(&std::fs::read(&a[1]).unwrap(), &LoadOptions { threads: 1, allow_float: a.len() > 3 })
        .unwrap_or_else(|e| panic!("{e}"));
    println!("{:?}", net.census());
    let input = f32s(&format!("{}.in", a[2]));
    let want = f32s(&format!("{}.out", a[2]));
    let t = std::time::Instant::now();
    let got = net.run_f32(&input).unwrap();
    println!("first {:?}", t.elapsed());
    let t = std::time::Instant::now();
    net.run_f32(&input).unwrap();
    println!("second {:?}", t.elapsed());
    let mut at = 0;
    for (o, got) in net.outputs().iter().zip(&got) {
        let want = &want[at..at + got.len()];
        at += got.len();
        let step = o.params.map_or(1e-4, |p| p.scale);
        let n = got.iter().zip(want).filter(|(a, b)| (*a - *b).abs() > step * 0.01).count();
        let max = got.iter().zip(want).map(|(a, b)| (a - b).abs() / step).fold(0.0, f32::max);
        println!("{} {:?} differ {n} of {} max {max} steps", o.name, o.shape, got.len());
    }
}
