#!/usr/bin/env bash
# usage: make_clips.sh DIR   12 clips of 10 s, 320x240, 30 frames a second, H.264 with key frames 250 apart, and lists of them.
# Slow zooms into the Mandelbrot set with sensor noise: about as many bits as the videos of Kinetics at this size.
set -eu
mkdir -p "$1"; cd "$1"; : > train.csv; : > val.csv
for k in $(seq 0 11); do
  x=$(echo "$k" | awk '{printf "%.6f", -0.743643887 + 0.0003 * $1}')
  ffmpeg -v error -y -f lavfi -i "mandelbrot=size=640x480:rate=30:start_x=$x:start_scale=0.$((k % 5 + 1)):end_scale=0.001:end_pts=600" -t 10 \
    -vf "scale=320:240,noise=alls=6:allf=t" -pix_fmt yuv420p -c:v libx264 -preset medium -crf 26 -g 250 -threads 1 "clip$k.mp4"
  echo "clip$k.mp4 $((k % 4))" >> train.csv
done
head -2 train.csv > val.csv
