//! Files that PyTorch wrote before version 1.6: what is read of them, and what is refused. The larger one that PyTorch wrote
//! is in tests/pictures/efficientnet.rs.

#[path = "../common/pth.rs"]
mod archive;

use archive::{MAGIC, file, vector};
use mixlora::io::PthFile;

fn refused(bytes: Vec<u8>, what: &str) {
    let error = PthFile::from_bytes("a.pth", bytes).err().map_or("accepted".into(), |e| e.to_string());
    assert!(error.contains(what), "{what}: {error}");
}

#[test]
fn tensors_are_read() {
    let read = PthFile::from_bytes("a.pth", vector()).unwrap();
    assert_eq!((read.names().collect::<Vec<_>>(), read.dims("w").unwrap()), (vec!["w"], &[2][..]));
    assert_eq!(read.tensors()[0].values, [1.5, -2.0]);
    let error = read.dims("v").unwrap_err().to_string();
    assert!(error.contains("tensor 'v' is missing"), "{error}");

    // A matrix of 2 x 3 whose columns lie one after the other, as after a transposition.
    let columns = file(&[0.0, 3.0, 1.0, 4.0, 2.0, 5.0], b"K\x00K\x02K\x03\x86K\x01K\x02\x86");
    let read = PthFile::from_bytes("a.pth", columns).unwrap();
    assert_eq!(read.tensors()[0].values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let number = PthFile::from_bytes("a.pth", file(&[7.0], b"K\x00))")).unwrap();
    assert_eq!((number.dims("w").unwrap(), &number.tensors()[0].values[..]), (&[][..], &[7.0][..]));
}

#[test]
fn every_cut_is_an_error() {
    let whole = vector();
    for length in 0..whole.len() {
        assert!(PthFile::from_bytes("a.pth", whole[..length].to_vec()).is_err(), "{length}");
    }
    refused([&whole[..], b"x"].concat(), "goes on behind its last value");
}

#[test]
fn what_is_not_plain_is_refused() {
    let of = |shape: &[u8]| file(&[1.0, 2.0], shape);
    refused(
        of(b"K\x01K\x02\x85K\x01\x85"),
        "of shape [2] from value 1 of a storage of 2: parts are not read",
    );
    refused(of(b"K\x00K\x01\x85K\x01\x85"), "of shape [1] from value 0 of a storage of 2");
    refused(of(b"K\x00K\x02K\x01\x86K\x05K\x01\x86"), "steps [5, 1], which leave its storage of 2");
    refused(of(b"K\x00K\x02\x85)"), "steps []");
    refused(of(b"K\x00J\xff\xff\xff\xff\x85K\x01\x85"), "sizes or steps");
    refused(of(b"K\x00(NtK\x01\x85"), "sizes or steps");
    refused(of(b"K\x00K\x01\x85\x85\x85K\x01\x85"), "tuples in tuples");
    let swap = |from: &[u8], to: &[u8]| {
        let whole = vector();
        let at = whole.windows(from.len()).position(|window| window == from).unwrap();
        [&whole[..at], to, &whole[at + from.len()..]].concat()
    };
    refused(swap(b"ctorch\nFloatStorage", b"cposix\nsystem"), "names posix.system");
    refused(swap(b"ctorch\nFloatStorage", b"ctorch\nHalfStorage"), "names torch.HalfStorage");
    refused(swap(b"\x88u", b"\x89u"), "another byte order");
    refused(swap(b"M\xe9\x03", b"M\xe8\x03"), "another version than 1001");
    refused(swap(b"K\x00K\x02", b"iaK\x02"), "instruction 0x69 ('i', INST) at byte 1");
    refused(swap(b"\x80\x02M", b"\x80\x04M"), "protocol 4");
    refused(swap(b")R(", b"NN("), "what is no dictionary");
    refused(swap(b"](", b"}("), "at byte");
    refused(swap(b"h\x00", b"h\x07"), "recalls value 7");
    refused(swap(b"NtQ", b"ttQ"), "not that of a storage");
    refused(swap(b"](", b"]t"), "takes a mark");
    refused(swap(&2u64.to_le_bytes(), &3u64.to_le_bytes()), "2 were announced");
    refused(swap(&2u64.to_le_bytes(), &u64::MAX.to_le_bytes()), "has -1 values");
    refused(b"PK\x03\x04".to_vec(), "safetensors");
    refused(b"\x80\x02}.".to_vec(), "is not a PyTorch file");
}

/// Short files ask for much: numbers of instructions and sizes are looked at before memory is.
#[test]
fn short_files_take_little() {
    let endless = |instruction: &[u8]| [MAGIC, b"\x80\x02", &instruction.repeat(300_000)].concat();
    for instruction in [&b"N"[..], b"(", b")", b"]", b"N\x85", b"}q\x01"] {
        refused(endless(instruction), "more than 262144 instructions");
    }
    let many = file(&[1.0, 2.0], b"K\x00(J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7ftK\x01\x85");
    refused(many, "of a storage of 2");
    let count = [b"NtQ", &b""[..]].concat();
    let whole = vector();
    let at = whole.windows(3).position(|window| window == count).unwrap();
    refused([&whole[..at - 2], b"J\xff\xff\xff\x7f", &whole[at..]].concat(), "2147483647");
}
