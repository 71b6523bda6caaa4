//! What a bench says: values, floors, ratios, and whether the target is met.

use serde::Serialize;

use super::super::show;

/// One line of the result.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    /// The same without Gristmill, or where nothing else is waited for.
    pub floor: Option<f64>,
    /// Of value to floor: the median over runs.
    pub ratio: Option<f64>,
    pub target: Option<String>,
    pub met: Option<bool>,
}

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// A part of the floor.
    RatioAtLeast(f64),
    /// A multiple of the floor.
    RatioAtMost(f64),
    AtLeast(f64),
    AtMost(f64),
}

impl Figure {
    /// Of values alone.
    pub(super) fn of(name: &str, unit: &'static str, values: &[f64]) -> Self {
        Self { name: name.to_owned(), value: median(values), unit, floor: None, ratio: None, target: None, met: None }
    }

    /// Of values and floors that were measured in turn.
    pub(super) fn beside(name: &str, unit: &'static str, values: &[f64], floors: &[f64]) -> Self {
        let ratios: Vec<f64> = values.iter().zip(floors).map(|(value, floor)| value / floor).collect();
        Self { floor: Some(median(floors)), ratio: Some(median(&ratios)), ..Self::of(name, unit, values) }
    }

    /// With a target.
    pub(super) fn held_to(self, target: Target) -> Self {
        let (text, met) = match target {
            Target::RatioAtLeast(part) => {
                (format!("at least {part} of the floor"), self.ratio.map(|ratio| ratio >= part))
            }
            Target::RatioAtMost(times) => {
                (format!("at most {times} of the floor"), self.ratio.map(|ratio| ratio <= times))
            }
            Target::AtLeast(least) => (format!("at least {least} {}", self.unit), Some(self.value >= least)),
            Target::AtMost(most) => (format!("at most {most} {}", self.unit), Some(self.value <= most)),
        };
        Self { target: Some(text), met, ..self }
    }
}

/// The middle one, or the mean of both.
pub(super) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The value below which so many percent lie.
pub(super) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let (low, high) = (last * percent / 100, (last * percent).div_ceil(100));
    match (sorted.get(low), sorted.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}

pub(super) fn table(figures: &[Figure]) -> String {
    let rows = figures.iter().map(|figure| {
        vec![
            figure.name.clone(),
            number(figure.value),
            figure.unit.to_owned(),
            show::maybe(figure.floor.map(number)),
            show::maybe(figure.ratio.map(|ratio| format!("{ratio:.2}"))),
            show::maybe(figure.target.as_ref()),
            show::maybe(figure.met.map(|met| if met { "yes" } else { "no" })),
        ]
    });
    let header = ["figure", "value", "unit", "floor", "ratio", "target", "met"];
    show::table(&header, &["value", "floor", "ratio"], rows.collect())
}

fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        some if some >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_lie_between_values() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!((percentile(&[1.0, 2.0], 99) - 1.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_ratio_is_of_runs_side_by_side_and_held_against_its_target() {
        let figure =
            Figure::beside("x", "rows/s", &[10.0, 40.0, 30.0], &[20.0, 40.0, 40.0]).held_to(Target::RatioAtLeast(0.75));
        assert_eq!((figure.ratio, figure.met), (Some(0.75), Some(true)));
        assert_eq!(Figure::of("x", "MB", &[61.0]).held_to(Target::AtMost(60.0)).met, Some(false));
    }
}
