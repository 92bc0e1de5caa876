//! Drawings of plain shapes on a light ground.

use crate::quickstart::dice::Dice;
use mixlora::Result;
use mixlora::picture::Picture;
#[cfg(test)]
use mixlora::picture::{Alpha, Limits, PictureFile};
use std::ops::Range;

/// Width and height of a drawing.
pub const SIDE: usize = 128;
/// The colours of easy-VQA.
pub const COLORS: [(&str, [u8; 3]); 8] = [
    ("black", [0, 0, 0]),
    ("blue", [0, 0, 255]),
    ("brown", [165, 42, 42]),
    ("gray", [128, 128, 128]),
    ("green", [0, 128, 0]),
    ("red", [255, 0, 0]),
    ("teal", [0, 128, 128]),
    ("yellow", [255, 255, 0]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Circle,
    Rectangle,
    Triangle,
}

impl Shape {
    pub const ALL: [Shape; 3] = [Shape::Circle, Shape::Rectangle, Shape::Triangle];

    pub fn name(self) -> &'static str {
        match self {
            Shape::Circle => "circle",
            Shape::Rectangle => "rectangle",
            Shape::Triangle => "triangle",
        }
    }
}

/// A shape at its place.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    pub shape: Shape,
    pub color: [u8; 3],
    /// Column and row of the centre.
    pub center: (usize, usize),
    /// Half of width and height; a circle has the first as its radius.
    pub half: (usize, usize),
}

impl Figure {
    /// A figure of any shape; halves of its width and height are in `sizes`.
    pub fn any(dice: &mut Dice, color: [u8; 3], center: (usize, usize), sizes: &Range<usize>) -> Self {
        let shape = dice.pick(&Shape::ALL);
        let half = (within(dice, sizes), within(dice, sizes));
        Figure { shape, color, center, half }
    }

    /// Whether a pixel belongs to the figure.
    fn covers(&self, x: usize, y: usize) -> bool {
        let right = x as i64 - self.center.0 as i64;
        let down = y as i64 - self.center.1 as i64;
        let width = self.half.0 as i64;
        let height = self.half.1 as i64;
        match self.shape {
            Shape::Circle => right * right + down * down <= width * width,
            Shape::Rectangle => right.abs() <= width && down.abs() <= height,
            Shape::Triangle => down.abs() <= height && 2 * height * right.abs() <= width * (down + height),
        }
    }
}

/// A number in a range.
pub fn within(dice: &mut Dice, range: &Range<usize>) -> usize {
    range.start + dice.below(range.len())
}

/// The file of a drawing: figures on a light ground of any colour.
pub fn png(dice: &mut Dice, figures: &[Figure]) -> Result<Vec<u8>> {
    let ground = [(); 3].map(|()| within(dice, &(230..256)) as u8);
    let color = |at: usize| {
        let covers = |figure: &&Figure| figure.covers(at % SIDE, at / SIDE);
        figures.iter().find(covers).map_or(ground, |figure| figure.color)
    };
    Picture::new(SIDE, SIDE, (0..SIDE * SIDE).flat_map(color).collect())?.to_png()
}

/// The picture in a file.
#[cfg(test)]
pub fn decoded(png: &[u8]) -> Result<Picture> {
    let file = PictureFile::from_bytes("drawing.png", png.to_vec(), &Limits::default())?;
    Ok(file.decode(Alpha::Drop)?.picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_cover_their_areas() {
        let half = (20, 30);
        for (shape, area) in [
            (Shape::Circle, std::f64::consts::PI * 400.0),
            (Shape::Rectangle, 40.0 * 60.0),
            (Shape::Triangle, 40.0 * 60.0 / 2.0),
        ] {
            let figure = Figure { shape, color: [0; 3], center: (64, 64), half };
            let png = png(&mut Dice::new(1, "area"), &[figure]).unwrap();
            let picture = decoded(&png).unwrap();
            let dark = picture.rgb().chunks(3).filter(|pixel| **pixel == [0; 3]).count();
            // Pixels on the outline count whole.
            assert!((dark as f64 / area - 1.0).abs() < 0.05, "{}: {dark} of {area}", shape.name());
        }
    }
}
