//! Small files of PyTorch's old format, made by hand.

/// What such files begin with.
pub const MAGIC: &[u8] =
    &[0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];

/// How a tensor ends that begins with its first value, sizes and steps: no training, no hooks, `_rebuild_tensor_v2`.
const HOOKS: &[u8] = b"\x89ccollections\nOrderedDict\n)RtR";

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A file of one tensor `w` on a storage of the values; `shape` pushes its first value, its sizes and its steps.
pub fn file(values: &[f32], shape: &[u8]) -> Vec<u8> {
    let parts = [
        MAGIC.to_vec(),
        b"\x80\x02M\xe9\x03.\x80\x02}(".to_vec(),
        text("little_endian"),
        b"\x88u.\x80\x02ccollections\nOrderedDict\nq\x00)R(".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("7"),
        text("cpu"),
        vec![b'K', values.len() as u8],
        b"NtQ".to_vec(),
        shape.to_vec(),
        HOOKS.to_vec(),
        b"u}".to_vec(),
        text("_metadata"),
        b"h\x00)Rsb.\x80\x02](".to_vec(),
        text("7"),
        b"e.".to_vec(),
        (values.len() as u64).to_le_bytes().to_vec(),
        values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    ];
    parts.concat()
}

/// A tensor of two values.
pub fn vector() -> Vec<u8> {
    file(&[1.5, -2.0], b"K\x00K\x02\x85K\x01\x85")
}
