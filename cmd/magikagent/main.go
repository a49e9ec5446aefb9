// Command magikagent is part of magikpod.
package main

func main() {}
