//! Base64, as data URLs have it.

/// The bytes of a text in base64, the usual alphabet or the one of URLs; white space is skipped.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let mut bits = 0u32;
    let mut count = 0;
    let digits = text.trim_end().trim_end_matches('=');
    for (at, byte) in digits.bytes().enumerate().filter(|(_, byte)| !byte.is_ascii_whitespace()) {
        let Some(value) = value(byte) else {
            return Err(format!("is not base64: character {} is none of its", at + 1));
        };
        bits = bits << 6 | value;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // A single digit behind whole bytes is less than a byte.
    if count == 6 { Err("is not base64: its end is cut off".into()) } else { Ok(bytes) }
}

/// The text of bytes, in the usual alphabet.
pub(super) fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for digit in 0..4 {
            let at = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= three.len() { char::from(DIGITS[at as usize]) } else { '=' });
        }
    }
    text
}

fn value(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The vectors of RFC 4648, section 10.
    #[test]
    fn text_becomes_bytes_and_bytes_text() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9v\nYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(decode(text).unwrap(), bytes.as_bytes(), "{text}");
            assert_eq!(encode(bytes.as_bytes()), text.replace('\n', ""), "{bytes}");
        }
        assert_eq!(decode("-_+/").unwrap(), [0xfb, 0xff, 0xbf]);
        assert!(decode("Zm9vY").unwrap_err().contains("cut off"));
        assert!(decode("Zm9*").unwrap_err().contains("character 4"));
    }
}
