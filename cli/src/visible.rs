//! Text that others wrote, on a terminal or a page: no character of it may steer one, or be there unseen.

/// Whether a character steers a terminal or a page and shows nothing: control characters, and those that turn the direction of writing
/// or have no width.
pub(crate) fn is_unseen(character: char) -> bool {
    let turns =
        matches!(character, '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let no_width = matches!(character, '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}' | '\u{2028}' | '\u{2029}');
    character.is_control() || turns || no_width
}

/// A text of several lines, with what is unseen spelt out.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character != '\n' && is_unseen(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_spelt_out_and_the_rest_is_as_it_was() {
        assert_eq!(escaped("h2\u{1b}[31m00\u{202e}"), "h2\\u{1b}[31m00\\u{202e}");
        assert_eq!(escaped("two lines\nof Größe µ 東"), "two lines\nof Größe µ 東");
    }
}
